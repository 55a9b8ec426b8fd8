"""F2SA: bilevel optimization with gradients only, by a penalty that may grow."""

from typing import Any

import optax

from .._check import Check
from .._solver.move import Projection
from .._solver.solver import Solver
from ._base import Objective
from ._f2sa_schedule import PenaltySchedule
from ._penalized import movers, penalized
from ._schedules import settled


def f2sa(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation | None = None,
    inner: optax.GradientTransformation | None = None,
    penalty: Any = None,
    inner_y: optax.GradientTransformation | None = None,
    inner_steps: int | None = None,
    schedule: PenaltySchedule | None = None,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by first-order steps, with a penalty that may grow.

    With f the upper and g the lower objective, λ the penalty, and each ← a step of a
    transform along the gradient on its right,

        T times:  z ← ∇_y g(x, z)
                  y ← ∇_y f(x, y) / λ + ∇_y g(x, y)
        x ← ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]
        λ_{k+1} = λ_k + δ_k

    A step costs T (2 ∇_y g + ∇_y f) + ∇_x f + 2 ∇_x g, and no second derivative.

    The gradient of y is divided by λ, so a step size that is stable for z is stable for
    y at any λ. For the paper's form, a step α of ∇f + λ∇g, pass
    `inner_y=optax.chain(ok.bilevel.scale_by_penalty(), optax.sgd(alpha))`. The error of
    y and z is multiplied by λ: as λ grows, let x move slower or raise `inner_steps`.
    Their noise is multiplied too, unless they share it: in `ok.bilevel.Batches`, give
    `lower_y` and `lower_z` the same samples.

    The fixed point is biased by O(1/λ), and rounding adds O(λ eps), so λ above
    1 / sqrt(eps) is useless (3e3 in float32, 11 in bfloat16). A constant λ converges
    faster, to a point biased by 1/λ. `info.result` reports if the step sizes, the
    penalty or T leave the bounds of a schedule, if λ falls, if y and z agree to
    rounding, and if a gradient is not finite. In the last case, x, y and z do not move.

    The step sizes, the penalty and T of the theory depend on each other. `schedule=`
    sets them all at once; without it, pass `outer`, `inner` and `penalty`.

    Departs: (1) the gradient of y is divided by λ; (2) x and y may be constrained; (3)
    both ∇_x g share one batch, so that their common noise cancels: the paper, and the
    implementation in benchmark_bilevel, draw one for each.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar. The theory needs strong convexity in y.
        outer: the transform of x.
        inner: the transform of z, and of y unless `inner_y` is given. Each has its own
            state, and receives `penalty=` and `count=`.
        penalty: λ, a number > 0 or a function of the step.
        inner_y: the transform of y, if it differs.
        inner_steps: T, the steps of y and z before each step of x; default 1. To let it
            grow, continue from the state with a solver that takes more steps.
        schedule: an `ok.bilevel.f2sa_schedule(...)`, instead of the five above.
        project_x: onto the constraint set of x, after each of its steps.
        project_y: onto that of y, after each step of y and z.

    Returns:
        An `ok.Solver` whose state is an `ok.bilevel.PenaltyState`. Its `step` is jitted
        and takes one batch for all gradients, or an `ok.bilevel.Batches`.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> upper = lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2
        >>> lower = lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
        >>> options = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5), "penalty": 10}
        >>> solver = ok.bilevel.f2sa(upper, lower, inner_steps=5, **options)
        >>> state = solver.init(0.0, 0.0)
        >>> for _ in range(50):
        ...     state, info = solver.step(state, None)
        >>> print(f"{state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Algorithm F2SA.
    """
    check = Check("ok.bilevel.f2sa")
    needed = {"outer": outer, "inner": inner, "penalty": penalty}
    optional = {"inner_y": inner_y, "inner_steps": inner_steps}
    settings = settled(check, PenaltySchedule, schedule, needed, **optional)
    moves = movers(check, settings, project_x, project_y)
    return penalized(check, upper, lower, moves, settings)
