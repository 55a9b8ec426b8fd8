"""One step for all first-order penalty methods.

The value-function reformulation of min_x f(x, y*(x)) penalises, with weight λ, how far
y is from solving the lower problem. If y minimises f/λ + g, and z minimises g,
Danskin's theorem gives

    ∇_x min_y [f(x, y) + λ (g(x, y) - min_z g(x, z))]
        = ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]

without second derivatives. The methods differ in their gradients, which are exact or
estimated with momentum, and in whether y and z are pulled to centers that follow them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Move, Projection, mover
from .._solver.solver import Solver
from .._types import Params, wide_dtype
from .._vector import (
    all_finite,
    axpy,
    cast_like,
    common_dtype,
    norm,
    safe_norm,
    strong,
    subtract,
)
from ._base import (
    Batch,
    Batches,
    BilevelInfo,
    InnerBatches,
    Objective,
    batches_of,
    next_count,
    objectives_of,
)
from ._proximal import Proximal
from ._schedules import Penalty, Settings
from ._storm import Exact, Memory, Point, Storm, as_decay

_RESOLVED = 8.0  # rounding errors by which y and z must differ, for an error of 1/8


class PenaltyState(NamedTuple):
    """What the next step of a penalty method needs."""

    count: Int[Array, ""]  # of calls
    x: Params
    y: Params  # near the minimiser of f/λ + g
    z: Params  # near the minimiser of g
    centers: tuple[Params, Params] | None  # of y and z; None if they are y and z
    memory: Memory | None  # of the estimates, if they have momentum
    penalty: Float[Array, ""]  # λ_k, or 1/σ_k
    outer: PyTree
    inner_y: PyTree
    inner_z: PyTree


class Moves(NamedTuple):
    """How x, y and z move."""

    x: Move
    y: Move
    z: Move


def movers(
    check: Check,
    settings: Settings,
    project_x: Projection | None,
    project_y: Projection | None,
) -> Moves:
    """The moves, from the user's arguments."""
    return Moves(
        mover(check, "x", project_x, outer=settings.outer),
        mover(check, "y", project_y, inner_y=settings.inner_y),
        mover(check, "y", project_y, inner=settings.inner),
    )


def penalized(
    check: Check,
    upper: Objective,
    lower: Objective,
    moves: Moves,
    settings: Settings,
    proximal: Proximal = Proximal(),  # noqa: B008  # immutable
) -> Solver:
    """Makes a solver: a double loop with `inner_steps`, a single one with `decay`."""
    *_, penalty, inner_steps, decay = settings
    proximal.check(check)
    check.optional.count(inner_steps=inner_steps)
    exact = Exact(*objectives_of(check, upper, lower))
    gradients = exact if decay is None else Storm(exact, as_decay(check, decay))
    method = PenaltyMethod(gradients, penalty, proximal, inner_steps, moves)

    def init(x: Params, y: Params) -> PenaltyState:
        check.real(x=x, y=y)
        return method.init(x, y)

    return Solver(init, jax.jit(lambda state, batch: method.step(state, batch)))


class PenaltyMethod(NamedTuple):
    """The parts of a penalty method, and its step."""

    gradients: Exact | Storm
    penalty: Penalty
    proximal: Proximal
    inner_steps: int | None
    moves: Moves

    def init(self, x: Params, y: Params) -> PenaltyState:
        """The state before the first step."""
        x, y, z = strong(x), strong(y), strong(y)
        centers = (strong(y), strong(z)) if self.proximal.has_centers else None
        count, memory = jnp.zeros([], jnp.int32), self.gradients.init(Point(x, y, z))
        opt_states = self.moves.x.init(x), self.moves.y.init(y), self.moves.z.init(z)
        λ = self.penalty.initial()
        return PenaltyState(count, x, y, z, centers, memory, λ, *opt_states)

    def step(
        self, state: PenaltyState, batch: Batch
    ) -> tuple[PenaltyState, BilevelInfo]:
        """The inner steps, then one of x."""
        batches, is_shared = batches_of(batch)
        x, k, λ = state.x, state.count, state.penalty
        centers = state.centers or (state.y, state.z)
        # A double loop starts at the centers, a single one at the last iterates.
        start = (state.y, state.z) if self.inner_steps is None else centers
        residual = jnp.zeros([], common_dtype(state.z))
        carry = *start, state.inner_y, state.inner_z, state.memory, residual
        inner_step = partial(self._inner_step, x, k, λ, centers)
        given = batches.upper_y, batches.lower_y, batches.lower_z
        if self.inner_steps is None:
            carry = inner_step(carry, given)
        else:
            loop = InnerBatches(given, is_shared).loop
            carry = loop(inner_step, carry, self.inner_steps)
        y, z, opt_y, opt_z, memory, residual = carry
        points = Point(x, *start), Point(x, y, z)
        f, g, e, memory = self.gradients.outer(memory, k, *points, batches)
        d_x = cast_like(axpy(λ, e.lower_x, e.upper_x), x)
        x, opt_x = self.moves.x(d_x, state.outer, x, penalty=λ, count=k)
        average, kept = self.proximal.average, state.centers
        kept = None if kept is None else (average(kept[0], y), average(kept[1], z))
        after = PenaltyState(k, x, y, z, kept, memory, λ, opt_x, opt_y, opt_z)
        info = BilevelInfo(f, g, norm(d_x), residual, λ)
        return _concluded(self.penalty, state, after, info)

    def _inner_step(
        self, x: Params, k: Array, λ: Array, centers: Any, carry: PyTree, batch: PyTree
    ) -> PyTree:
        y, z, opt_y, opt_z, memory, _ = carry
        given = Batches(upper_y=batch[0], lower_y=batch[1], lower_z=batch[2])
        e, memory = self.gradients.inner(memory, k, Point(x, y, z), given)
        d_z = self.proximal.pull(cast_like(e.lower_z, z), z, centers[1])
        h_y = cast_like(axpy(1 / λ, e.upper_y, e.lower_y), y)
        d_y = self.proximal.pull(h_y, y, centers[0])
        residual, extra = self.moves.z.residual(d_z, z), {"penalty": λ, "count": k}
        z, opt_z = self.moves.z(d_z, opt_z, z, **extra)
        y, opt_y = self.moves.y(d_y, opt_y, y, **extra)
        return y, z, opt_y, opt_z, memory, residual


def _concluded(
    penalty: Penalty, before: PenaltyState, after: PenaltyState, info: BilevelInfo
) -> tuple[PenaltyState, BilevelInfo]:
    """Advances penalty and count, guards the state, and reports what went wrong."""
    k, λ = before.count, before.penalty
    # The whole state: second moments overflow before the variables do.
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
        always={"count": next_count(k), "penalty": penalty.next(k, λ)},
    )


def _cancels(y: Params, z: Params, λ: Array) -> Bool[Array, ""]:
    """Whether y and z agree to rounding because of the penalty."""

    def rounding(leaf: Array) -> Array:
        return leaf.astype(wide_dtype(leaf)) * float(jnp.finfo(leaf.dtype).eps)

    leaves = jax.tree.leaves(y)
    eps = max((float(jnp.finfo(leaf.dtype).eps) for leaf in leaves), default=0.0)
    # Below 1 / sqrt(eps) they agree for another reason, such as ∇_y f = 0 at z.
    is_large = λ * eps**0.5 > 1
    error = safe_norm(jax.tree.map(rounding, y))
    return is_large & (error > 0) & (safe_norm(subtract(y, z)) <= _RESOLVED * error)
