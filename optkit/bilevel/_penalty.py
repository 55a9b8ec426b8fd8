"""A proximal penalty method, for lower levels that need not be convex."""

from typing import Any

import optax

from .._check import Check
from .._solver.move import Projection
from .._solver.solver import Solver
from ._base import Objective
from ._f2sa_schedule import PenaltySchedule
from ._penalized import movers, penalized
from ._proximal import Proximal
from ._schedules import settled


def penalty(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation | None = None,
    inner: optax.GradientTransformation | None = None,
    sigma: Any = None,
    inner_steps: int | None = None,
    schedule: PenaltySchedule | None = None,
    prox_step: Any = None,
    averaging: Any = 1.0,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by proximal-point steps on both of its lower problems.

    With f the upper and g the lower objective, X and Y the constraint sets, and
    h = σf + g, it minimises over X

        ψ_σ(x) = (min_{u in Y} h(x, u) - min_{w in Y} g(x, w)) / σ

    which tends to the smallest f(x, y) among the minimisers y in Y of g(x, ·). g may
    have many minimisers, and neither f nor g needs to be convex in y. Starting from the
    centers u = y and w = z, and with each ← a step of a transform, then a projection,

        T times:  w ← ∇_y g(x, w) + (w - z)/ρ
                  u ← σ ∇_y f(x, u) + ∇_y g(x, u) + (u - y)/ρ
        z ← (1-β) z + β w        y ← (1-β) y + β u
        x ← ∇_x f(x, u) + ∇_x [g(x, u) - g(x, w)] / σ

    The hypergradient is biased by O(σ) if u and w are within about σ² of their
    minimisers, since 1/σ multiplies their error. So take enough inner steps, and let x
    move slowest and the centers faster. 1/ρ should exceed the most negative curvature
    of g and h in y; if both are convex, it is fastest without a proximal term. With the
    defaults of ρ and β this is `ok.bilevel.f2sa` with λ = 1/σ; `info` is as there.

    Choices where the source leaves room: (1) ∇_x is taken at u and w, where Danskin's
    theorem applies, not at the centers; (2) u and w share their step size; (3) both
    ∇_x g share their samples; (4) transforms replace fixed steps.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar.
        outer: the transform of x.
        inner: the transform of u and w. With a constraint, use `optax.sgd`: a
            projection after a transform that scales entries, such as Adam, is not a
            projected gradient step.
        sigma: σ, a number > 0 or a function of the step: `ok.bilevel.sigma_schedule`.
        inner_steps: T. The source lets it grow: to do so, continue from the state with
            a solver that takes more steps.
        schedule: an `ok.bilevel.f2sa_schedule(...)`, instead of the four above: σ =
            1/λ then falls with the powers of `ok.bilevel.sigma_schedule`, u moves by
            α_k λ_k and w by γ_k. `info.result` compares with the bounds of F2SA, which
            involve neither ρ nor β.
        prox_step: ρ, a number > 0, or None for no proximal term.
        averaging: β, a number in (0, 1].
        project_x: onto X, after each step of x.
        project_y: onto Y, after each inner step.

    Returns:
        An `ok.Solver`, as from `ok.bilevel.f2sa`. u and w are `state.y` and `state.z`;
        if β < 1, `state.centers` is (y, z).

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> upper = lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2
        >>> lower = lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
        >>> options = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5), "sigma": 0.1}
        >>> solver = ok.bilevel.penalty(upper, lower, inner_steps=5, **options)
        >>> run = ok.run(solver, solver.init(0.0, 0.0), lambda k: None, 100)
        >>> print(f"{run.state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2309.01753, the double-loop algorithm.
    """
    check = Check("ok.bilevel.penalty")
    needed = {"outer": outer, "inner": inner, "sigma": sigma}
    needed["inner_steps"] = inner_steps
    settings = settled(check, PenaltySchedule, schedule, needed)
    moves = movers(check, settings, project_x, project_y)
    proximal = Proximal(prox_step, averaging)
    return penalized(check, upper, lower, moves, settings, proximal)
