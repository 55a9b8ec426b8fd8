"""One step for all first-order penalty methods.

The value-function reformulation of min_x f(x, y*(x)) penalises what y leaves of the
lower problem by λ. With y a minimiser of f/λ + g and z one of g, Danskin's theorem is

    ∇_x min_y [f(x, y) + λ (g(x, y) - min_z g(x, z))]
        = ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]

without a second derivative. The methods differ in how they take the gradients, exact
or with momentum, and in whether y and z are pulled to centres that follow them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Move, Projection, mover
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
    check.optional.count(inner_steps=inner_steps)
    slopes: Any = Exact(*objectives_of(check, upper, lower))
    method = PenaltyMethod(
        slopes if decay is None else Storm(slopes, as_decay(check, decay)),
        penalty,
        proximal,
        inner_steps,
        mover(check, "x", project_x, outer=outer),
        mover(check, "y", project_y, inner_y=inner if inner_y is None else inner_y),
        mover(check, "y", project_y, inner=inner),
    )

    def init(x: Params, y: Params) -> PenaltyState:
        check_variables(check, x, y)
        return method.init(x, y)

    return Solver(init, jax.jit(lambda state, batch: method.step(state, batch)))


class PenaltyMethod(NamedTuple):
    """What a penalty method is made of, and its step."""

    slopes: Any  # `Exact` or `Storm`
    penalty: Penalty
    proximal: Proximal
    inner_steps: int | None
    move_x: Move
    move_y: Move
    move_z: Move

    def init(self, x: Params, y: Params) -> PenaltyState:
        """The state before the first step."""
        x, y, z = strong(x), strong(y), strong(y)
        has_centers = self.proximal.has_centers
        return PenaltyState(
            count=jnp.zeros([], jnp.int32),
            x=x,
            y=y,
            z=z,
            centers=(strong(y), strong(z)) if has_centers else None,
            memory=self.slopes.init(Point(x, y, z)),
            penalty=self.penalty.initial(),
            outer=self.move_x.init(x),
            inner_y=self.move_y.init(y),
            inner_z=self.move_z.init(z),
        )

    def step(
        self, state: PenaltyState, batch: Batch
    ) -> tuple[PenaltyState, BilevelInfo]:
        """The inner steps, then one of x."""
        batches, is_shared = batches_of(batch)
        x, k, λ = state.x, state.count, state.penalty
        centers = state.centers or (state.y, state.z)
        # A double loop starts at the centers, a single one goes on where it was.
        start = (state.y, state.z) if self.inner_steps is None else centers
        carry = *start, state.inner_y, state.inner_z, state.memory
        carry = *carry, jnp.zeros([], common_dtype(state.z))
        inner_step = partial(self._inner_step, x, k, λ, centers)
        given = batches.upper_y, batches.lower_y, batches.lower_z
        if self.inner_steps is None:
            carry = inner_step(carry, given)
        else:
            num = self.inner_steps
            carry = repeat(inner_step, carry, given, num_steps=num, is_shared=is_shared)
        y, z, memory_y, memory_z, memory, residual = carry
        points = Point(x, *start), Point(x, y, z)
        value, below, s, memory = self.slopes.upper(memory, k, *points, batches)
        d_x = cast_like(axpy(λ, s.lower_x, s.upper_x), x)
        x, memory_x = self.move_x(d_x, state.outer, x, penalty=λ, count=k)
        after = (
            state
            if state.centers is None
            else state._replace(
                centers=tuple(map(self.proximal.average, centers, (y, z)))
            )
        )
        after = after._replace(
            x=x,
            y=y,
            z=z,
            memory=memory,
            outer=memory_x,
            inner_y=memory_y,
            inner_z=memory_z,
        )
        info = BilevelInfo(value, below, norm(d_x), residual, λ)
        return _concluded(self.penalty, state, after, info)

    def _inner_step(
        self, x: Params, k: Array, λ: Array, centers: Any, carry: PyTree, batch: PyTree
    ) -> PyTree:
        y, z, memory_y, memory_z, memory, _ = carry
        given = Batches(upper_y=batch[0], lower_y=batch[1], lower_z=batch[2])
        s, memory = self.slopes.lower(memory, k, Point(x, y, z), given)
        d_z = self.proximal.pull(cast_like(s.lower_z, z), z, centers[1])
        h_y = cast_like(axpy(1 / λ, s.upper_y, s.lower_y), y)
        d_y = self.proximal.pull(h_y, y, centers[0])
        residual, extra = self.move_z.residual(d_z, z), {"penalty": λ, "count": k}
        z, memory_z = self.move_z(d_z, memory_z, z, **extra)
        y, memory_y = self.move_y(d_y, memory_y, y, **extra)
        return y, z, memory_y, memory_z, memory, residual


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
