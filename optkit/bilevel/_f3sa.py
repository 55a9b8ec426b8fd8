"""F3SA: F2SA whose gradients are estimates with recursive momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._solver.solver import Solver
from .._types import Params
from .._vector import (
    axpy,
    cast_like,
    norm,
    strong,
)
from ._base import (
    Batch,
    BilevelInfo,
    Objective,
    Projection,
    batches_of,
    check_variables,
)
from ._penalized import (
    conclude,
    move,
    oracles,
)
from ._schedules import as_penalty
from ._storm import (
    Estimates,
    Point,
    as_decay,
    estimate_lower,
    estimate_upper,
    zero_estimates,
)


class F3saState(NamedTuple):
    """What F3SA's next step needs."""

    count: Int[Array, ""]
    x: Params
    y: Params  # near the minimiser of f/λ + g
    z: Params  # near that of g
    previous: Point  # x, y and z a step ago
    estimates: Estimates
    penalty: Float[Array, ""]  # λ_k
    outer: PyTree  # the states of the transforms of x, y and z
    inner_y: PyTree
    inner_z: PyTree


def f3sa(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    penalty: Any,
    decay: Any,
    inner_y: optax.GradientTransformation | None = None,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by first-order steps along estimates with momentum.

    With e[...] an estimate as below and each ← a step of the transform that its
    right-hand side is handed to, for k = 0, 1, ...

        z_{k+1} ← e[∇_y g(x, z)]
        y_{k+1} ← e[∇_y f(x, y)] / λ + e[∇_y g(x, y)]
        x_{k+1} ← e[∇_x f(x, y)] + λ e[∇_x (g(x, y) - g(x, z))]
        λ_{k+1} = λ_k + δ_k

    An estimate decays with β_k, which is 1 - η_k in the paper:

        e_k = ∇(new; ξ_k) + β_k (e_{k-1} - ∇(old; ξ_k))    β_0 = β_1 = 0

        of           new                    old
        ∇_y, at z    (x_k, z_k)             (x_{k-1}, z_{k-1})
        ∇_y, at y    (x_k, y_k)             (x_{k-1}, y_{k-1})
        ∇_x          (x_k, y_{k+1}, z_{k+1})  (x_{k-1}, y_k, z_k)

    Both gradients of a correction are of one sample, so a step costs twice that of
    `ok.bilevel.f2sa` with one inner step, and a state holds five estimates and the iterates of
    a step ago beside x, y and z. Momentum pays where noise limits the steps.

    All that `ok.bilevel.f2sa` says about transforms, the penalty and `info` holds here.

    Departs: (1) y's transform sees its gradient divided by λ; (2) constraint sets are
    projected on; (3) the two estimates of ∇_x g, which have one sample and one weight,
    are kept as their difference: the same in exact arithmetic, less rounding.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar.
        outer: the transform of x.
        inner: the transform of z and y.
        penalty: λ, a number > 0, a function of the step, or an `ok.bilevel.PenaltySchedule`.
        decay: β, a number in [0, 1) or a function of the step, such as
            `ok.bilevel.f3sa_schedule(...).decay`. The first two steps take 0 in its place.
        inner_y: the transform of y, if it is another. It gets `penalty=` too.
        project_x: onto the constraint set of x, after each step.
        project_y: onto that of y, after each step of y and z.

    Returns:
        An `ok.Solver` whose state is an `ok.bilevel.F3saState`. Its `step` is jitted; it
        takes one batch for all gradients, or an `ok.bilevel.Batches` with a batch for each.

    Raises:
        ValueError: for a penalty that is not positive or a decay outside [0, 1); in
            `step`, for objectives that are not scalar.
        TypeError: for transforms that are none; in `init`, for leaves that are not
            real floating.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def upper(x, y, batch):
        ...     return jnp.sum((y - 1) ** 2) / 2
        >>> def lower(x, y, batch):
        ...     return jnp.sum((y - x) ** 2) / 2
        >>> outer, inner = optax.sgd(0.2), optax.sgd(0.5)
        >>> solver = ok.bilevel.f3sa(
        ...     upper, lower, outer=outer, inner=inner, penalty=10.0, decay=0.9
        ... )
        >>> state = solver.init(jnp.zeros(()), jnp.zeros(()))
        >>> for _ in range(100):
        ...     state, info = solver.step(state, None)
        >>> print(f"{state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Algorithm F3SA.
    """
    call = "ok.bilevel.f3sa"
    schedule = as_penalty(call, "penalty", penalty)
    beta = as_decay(call, decay)
    grad = oracles(call, upper, lower)
    move_x = move(call, "outer", outer, project_x)
    move_z = move(call, "inner", inner, project_y)
    move_y = move(call, "inner_y", inner if inner_y is None else inner_y, project_y)

    def init(x: Params, y: Params) -> F3saState:
        check_variables(call, x, y)
        x, y, z = strong(x), strong(y), strong(y)
        return F3saState(
            count=jnp.zeros([], jnp.int32),
            x=x,
            y=y,
            z=z,
            previous=Point(strong(x), strong(y), strong(z)),
            estimates=zero_estimates(x, y),
            penalty=schedule.initial(),
            outer=move_x.tx.init(x),
            inner_y=move_y.tx.init(y),
            inner_z=move_z.tx.init(z),
        )

    def step(state: F3saState, batch: Batch) -> tuple[F3saState, BilevelInfo]:
        batches, _ = batches_of(batch)
        x, y, z, lam = state.x, state.y, state.z, state.penalty
        b, now = beta(state.count), Point(x, y, z)
        e = estimate_lower(grad, batches, b, state.estimates, now, state.previous)
        d_y = cast_like(axpy(1 / lam, e.upper_y, e.lower_y), y)
        d_z = cast_like(e.lower_z, z)
        z_new, inner_z = move_z(d_z, state.inner_z, z, state)
        y_new, inner_y = move_y(d_y, state.inner_y, y, state)
        e, upper_value, lower_value = estimate_upper(
            grad, batches, b, e, Point(x, y_new, z_new), Point(state.previous.x, y, z)
        )
        d_x = cast_like(axpy(lam, e.lower_x, e.upper_x), x)
        x_new, outer_state = move_x(d_x, state.outer, x, state)
        new = F3saState(
            count=state.count,
            x=x_new,
            y=y_new,
            z=z_new,
            previous=now,
            estimates=e,
            penalty=lam,
            outer=outer_state,
            inner_y=inner_y,
            inner_z=inner_z,
        )
        residual = move_z.residual(d_z, z)
        info = BilevelInfo(upper_value, lower_value, norm(d_x), residual, lam, None)
        return conclude(state, new, schedule, (y_new, z_new), info)

    return Solver(init, jax.jit(step))
