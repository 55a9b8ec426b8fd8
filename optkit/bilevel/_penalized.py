"""One step for all first-order penalty methods.

The value-function reformulation of min_x f(x, y*(x)) penalises what y leaves of the
lower problem by λ. With y a minimiser of f/λ + g and z one of g, Danskin's theorem is

    ∇_x min_y [f(x, y) + λ (g(x, y) - min_z g(x, z))]
        = ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]

without a second derivative. The methods differ in how they take the gradients, exact
or with momentum, and in whether y and z are pulled to centres that follow them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Projection, mover
from .._solver.solver import Solver
from .._types import Params, wide_dtype
from .._vector import all_finite, axpy, cast_like, common_dtype, norm, strong, subtract
from ._base import (
    Batch,
    Batches,
    BilevelInfo,
    Objective,
    batches_of,
    check_variables,
    objectives_of,
    repeat,
)
from ._proximal import Proximal
from ._schedules import Penalty
from ._storm import Exact, Memory, Point, Storm, as_decay

_RESOLVED = 8.0  # rounding errors by which y and z must differ, for an error of 1/8


class PenaltyState(NamedTuple):
    """What the next step of a penalty method needs.

    Attributes:
        count: steps taken.
        x: the upper variable.
        y: near the minimiser of f/λ + g.
        z: near that of g.
        centers: what y and z are pulled to, where that is not themselves; or None.
        memory: the estimates of the gradients, where they have momentum; or None.
        penalty: λ_k, or 1/σ_k.
        outer: the state of the transform of x.
        inner_y: of that of y.
        inner_z: of that of z.
    """

    count: Int[Array, ""]
    x: Params
    y: Params
    z: Params
    centers: tuple[Params, Params] | None
    memory: Memory | None
    penalty: Float[Array, ""]
    outer: PyTree
    inner_y: PyTree
    inner_z: PyTree


def penalized(
    check: Check,
    upper: Objective,
    lower: Objective,
    penalty: Penalty,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    project_x: Projection | None,
    project_y: Projection | None,
    inner_y: optax.GradientTransformation | None = None,
    inner_steps: int | None = None,
    decay: Any = None,
    proximal: Proximal = Proximal(),  # noqa: B008  # immutable
) -> Solver:
    """The solver, of a double loop with `inner_steps`, or of one loop with `decay`."""
    proximal.check(check)
    slopes: Any = Exact(*objectives_of(check, upper, lower))
    if decay is not None:
        slopes = Storm(slopes, as_decay(check, decay))
    check.optional.count(inner_steps=inner_steps)
    move_x = mover(check, "x", project_x, outer=outer)
    move_z = mover(check, "y", project_y, inner=inner)
    move_y = mover(check, "y", project_y, inner_y=inner if inner_y is None else inner_y)

    def init(x: Params, y: Params) -> PenaltyState:
        check_variables(check, x, y)
        x, y, z = strong(x), strong(y), strong(y)
        return PenaltyState(
            count=jnp.zeros([], jnp.int32),
            x=x,
            y=y,
            z=z,
            centers=(strong(y), strong(z)) if proximal.has_centers else None,
            memory=slopes.init(Point(x, y, z)),
            penalty=penalty.initial(),
            outer=move_x.init(x),
            inner_y=move_y.init(y),
            inner_z=move_z.init(z),
        )

    def step(state: PenaltyState, batch: Batch) -> tuple[PenaltyState, BilevelInfo]:
        batches, is_shared = batches_of(batch)
        x, k, λ = state.x, state.count, state.penalty
        centers = state.centers or (state.y, state.z)
        # A double loop starts at the centers, a single one goes on where it was.
        start = (state.y, state.z) if inner_steps is None else centers
        extra = {"penalty": λ, "count": k}

        def inner_step(carry: PyTree, batch: PyTree) -> PyTree:
            y, z, memory_y, memory_z, memory, _ = carry
            given = Batches(upper_y=batch[0], lower_y=batch[1], lower_z=batch[2])
            s, memory = slopes.lower(memory, k, Point(x, y, z), given)
            d_z = proximal.pull(cast_like(s.lower_z, z), z, centers[1])
            h_y = cast_like(axpy(1 / λ, s.upper_y, s.lower_y), y)
            d_y = proximal.pull(h_y, y, centers[0])
            residual = move_z.residual(d_z, z)
            z, memory_z = move_z(d_z, memory_z, z, **extra)
            y, memory_y = move_y(d_y, memory_y, y, **extra)
            return y, z, memory_y, memory_z, memory, residual

        carry = *start, state.inner_y, state.inner_z, state.memory
        carry = *carry, jnp.zeros([], common_dtype(state.z))
        lower_batches = batches.upper_y, batches.lower_y, batches.lower_z
        if inner_steps is None:
            carry = inner_step(carry, lower_batches)
        else:
            carry = repeat(
                inner_step,
                carry,
                lower_batches,
                num_steps=inner_steps,
                is_shared=is_shared,
            )
        y, z, memory_y, memory_z, memory, residual = carry
        points = Point(x, *start), Point(x, y, z)
        value, below, s, memory = slopes.upper(memory, k, *points, batches)
        d_x = cast_like(axpy(λ, s.lower_x, s.upper_x), x)
        x, memory_x = move_x(d_x, state.outer, x, **extra)
        if state.centers is not None:
            pairs = zip(centers, (y, z), strict=True)
            centers = tuple(proximal.average(*pair) for pair in pairs)
        after = PenaltyState(
            count=k,
            x=x,
            y=y,
            z=z,
            centers=None if state.centers is None else centers,
            memory=memory,
            penalty=λ,
            outer=memory_x,
            inner_y=memory_y,
            inner_z=memory_z,
        )
        info = BilevelInfo(value, below, norm(d_x), residual, λ)
        return _concluded(penalty, state, after, info)

    return Solver(init, jax.jit(step))


def _concluded(
    penalty: Penalty, before: PenaltyState, after: PenaltyState, info: BilevelInfo
) -> tuple[PenaltyState, BilevelInfo]:
    """Advances penalty and count, says in `info` what is wrong, and guards the state."""
    k, λ = before.count, before.penalty
    # All of it: second moments overflow before the variables do.
    is_finite = all_finite(after) & jnp.isfinite(info.hypergradient_norm)
    return guard(
        before,
        after,
        info,
        fatal=(
            (~(jnp.isfinite(λ) & (λ > 0)), RESULTS.bad_penalty),
            (~is_finite, RESULTS.nonfinite_gradient),
        ),
        doubtful=(
            (_cancels(after.y, after.z, λ), RESULTS.cancellation),
            (~penalty.is_within(k, λ), RESULTS.schedule_bounds),
        ),
        always={"count": k + 1, "penalty": penalty.next(k, λ)},
    )


def _cancels(y: Params, z: Params, λ: Array) -> Bool[Array, ""]:
    """Whether y and z agree to rounding, under a penalty that makes them."""

    def rounding(leaf: Array) -> Array:
        return leaf.astype(wide_dtype(leaf)) * float(jnp.finfo(leaf.dtype).eps)

    leaves = jax.tree.leaves(y)
    eps = max((float(jnp.finfo(leaf.dtype).eps) for leaf in leaves), default=0.0)
    # Below 1 / sqrt(eps) they agree for another reason, such as ∇_y f = 0 at z.
    is_large = λ * eps**0.5 > 1
    error = norm(jax.tree.map(rounding, y))
    return is_large & (error > 0) & (norm(subtract(y, z)) <= _RESOLVED * error)
