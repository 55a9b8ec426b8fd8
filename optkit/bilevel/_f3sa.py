"""F3SA: F2SA in a single loop, along gradient estimates with momentum."""

from typing import Any

import optax

from .._check import Check
from .._solver.move import Projection
from .._solver.solver import Solver
from ._base import Objective
from ._f3sa_schedule import MomentumSchedule
from ._penalized import movers, penalized
from ._schedules import settled


def f3sa(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation | None = None,
    inner: optax.GradientTransformation | None = None,
    penalty: Any = None,
    decay: Any = None,
    inner_y: optax.GradientTransformation | None = None,
    schedule: MomentumSchedule | None = None,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by first-order steps along estimates with momentum.

    With the letters of `ok.bilevel.f2sa`, and e[...] an estimate of a gradient,

        z_{k+1} ← e[∇_y g(x, z)]
        y_{k+1} ← e[∇_y f(x, y)] / λ + e[∇_y g(x, y)]
        x_{k+1} ← e[∇_x f(x, y)] + λ e[∇_x (g(x, y) - g(x, z))]

    An estimate decays with β_k, which is 1 - η_k in the paper:

        e_k = ∇(new; ξ_k) + β_k (e_{k-1} - ∇(old; ξ_k))    β_0 = β_1 = 0

        of           new                      old
        ∇_y, at z    (x_k, z_k)               (x_{k-1}, z_{k-1})
        ∇_y, at y    (x_k, y_k)               (x_{k-1}, y_{k-1})
        ∇_x          (x_k, y_{k+1}, z_{k+1})  (x_{k-1}, y_k, z_k)

    A step costs twice one of `ok.bilevel.f2sa` with one inner step, and the state also
    holds five estimates and the last x, y and z. Momentum pays off if noise limits the
    step sizes. The remarks of `ok.bilevel.f2sa` on transforms, penalty and `info`
    apply. `decay` is β, a number in [0, 1) or a function of the step; it is 0 in the
    first two steps. `schedule=ok.bilevel.f3sa_schedule(...)` replaces the other
    settings. The other arguments are as for `ok.bilevel.f2sa`.

    Departs: (1) and (2) as in `ok.bilevel.f2sa`; (3) the two estimates of ∇_x g, which
    share sample and weight in the paper too, are kept as their difference, with less
    rounding.

    Returns:
        An `ok.Solver`, as from `ok.bilevel.f2sa`. Batches have no axis of inner steps.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> upper = lambda x, y, batch: jnp.sum((y - 1) ** 2) / 2
        >>> lower = lambda x, y, batch: jnp.sum((y - x) ** 2) / 2
        >>> options = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5), "penalty": 10}
        >>> solver = ok.bilevel.f3sa(upper, lower, decay=0.9, **options)
        >>> run = ok.run(solver, solver.init(0.0, 0.0), lambda k: None, 100)
        >>> print(f"{run.state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Algorithm F3SA.
    """
    check = Check("ok.bilevel.f3sa")
    needed = {"outer": outer, "inner": inner, "penalty": penalty, "decay": decay}
    settings = settled(check, MomentumSchedule, schedule, needed, inner_y=inner_y)
    moves = movers(check, settings, project_x, project_y)
    return penalized(check, upper, lower, moves, settings)
