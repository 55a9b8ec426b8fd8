"""The proximal penalty method in a single loop, along estimates with momentum."""

from typing import Any

import optax

from .._check import Check
from .._solver.move import Projection
from .._solver.solver import Solver
from ._base import Objective
from ._f3sa_schedule import MomentumSchedule
from ._penalized import movers, penalized
from ._proximal import Proximal
from ._schedules import settled


def penalty_momentum(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation | None = None,
    inner: optax.GradientTransformation | None = None,
    sigma: Any = None,
    decay: Any = None,
    schedule: MomentumSchedule | None = None,
    prox_step: Any = None,
    averaging: Any = 1.0,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Takes one proximal step for each step of x, along estimates with momentum.

    With the letters of `ok.bilevel.penalty` and the estimates e[...] of
    `ok.bilevel.f3sa`, each step followed by its projection,

        w ← e[∇_y g(x, w)] + (w - z)/ρ
        u ← σ e[∇_y f(x, u)] + e[∇_y g(x, u)] + (u - y)/ρ
        z ← (1-β) z + β w        y ← (1-β) y + β u
        x ← e[∇_x f(x, u)] + e[∇_x (g(x, u) - g(x, w))] / σ

    There are three time scales: u and w move fastest, then the centers y and z, and x
    slowest by far, since 1/σ multiplies the lag of u and w. With the defaults of ρ and
    β this is `ok.bilevel.f3sa` with λ = 1/σ. `decay` and `schedule` are as for
    `ok.bilevel.f3sa`, and the other arguments are as for `ok.bilevel.penalty`.

    Choices where the source leaves room: (1) the old points are those of F3SA, so that
    an estimate of an exact gradient is exact; (2) x moves after u and w; (3) the
    proximal term has no noise and is not estimated; (4) the two estimates of ∇_x g are
    kept as their difference.

    Returns:
        An `ok.Solver`, as from `ok.bilevel.penalty`. Batches have no axis of inner
        steps.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> upper = lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2
        >>> lower = lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
        >>> options = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5), "sigma": 0.1}
        >>> solver = ok.bilevel.penalty_momentum(upper, lower, decay=0.9, **options)
        >>> run = ok.run(solver, solver.init(0.0, 0.0), lambda k: None, 100)
        >>> print(f"{run.state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2309.01753, the single-loop algorithm with momentum.
    """
    check = Check("ok.bilevel.penalty_momentum")
    needed = {"outer": outer, "inner": inner, "sigma": sigma, "decay": decay}
    settings = settled(check, MomentumSchedule, schedule, needed)
    moves = movers(check, settings, project_x, project_y)
    proximal = Proximal(prox_step, averaging)
    return penalized(check, upper, lower, moves, settings, proximal)
