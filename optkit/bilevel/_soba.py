"""SOBA: one loop in which x, y and the linear system of the hypergradient move at once.

The sign of v is the paper's: v tends to -H⁻¹ ∇_y F, so that both directions below are
sums, and D_x tends to ∇Φ = ∇_x F - J H⁻¹ ∇_y F.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Move, Projection, mover
from .._solver.solver import Solver
from .._types import Params
from .._vector import all_finite, cast_like, norm, strong, widen
from ._base import (
    Batch,
    BilevelInfo,
    Objective,
    batches_of,
    check_variables,
    objectives_of,
    relative_residual,
    slope_of,
    upper_slopes,
)


class SobaState(NamedTuple):
    """What the next step of `ok.bilevel.soba` needs."""

    x: Params
    y: Params
    v: Params  # towards -H⁻¹ ∇_y F; in float32 or wider
    outer: PyTree
    inner: PyTree
    linear: PyTree
    count: Int[Array, ""]  # of calls


class Directions(NamedTuple):
    """What the three variables descend along."""

    x: Params
    y: Params
    v: Params


def soba(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    linear: optax.GradientTransformation | None = None,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Single-loop implicit bilevel descent: the cheapest step with second derivatives.

    With g on one batch and F on another, all at the same (x, y, v),

        D_y = ∇_y g    D_v = H v + ∇_y F    D_x = J v + ∇_x F
        y <- y - ρ D_y    v <- v - ρ D_v    x <- x - γ D_x

    where ρ and γ stand for the transforms. ∇_y g, H v and J v come from one pass and
    its vjp, so a step costs about three gradients of g and one of F, and solves
    nothing. The lower objective must be strongly convex in y. With noise, step sizes
    must decrease, in theory and in the paper's experiments as (k + 1)^-½:
    `optax.sgd(lambda k: 0.1 / (k + 1) ** 0.5)`. For finite sums `ok.bilevel.saba` does better.
    `optax.ema` in `outer` averages D_x, which removes a condition of the theory.

    The state holds x, y, v, and what the transforms keep: with plain `optax.sgd`, |x| +
    2|y|.

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar.
        outer: the optax transform of x.
        inner: that of y.
        linear: that of v; None is another `inner`. H is the same as y's, so what is
            stable for y is for v; take `optax.sgd` where `inner` is adaptive.
        project_x: onto the constraint set of x.
        project_y: onto that of y. D_v knows nothing of it: with a constraint on y that
            is active, x does not descend along ∇Φ.

    Returns:
        An `ok.Solver`. A batch is shared, or an `ok.bilevel.Batches` whose `upper_x` is
        F's and whose `lower_x` is g's. `info.residual_norm` is |∇_y g|,
        `info.linear_residual` is |D_v| / |∇_y F|. A step that is not finite keeps x, y
        and v.

    Raises:
        TypeError: for objectives that are not functions, transforms that are not
            optax's, or variables that are not trees of real floating arrays.
        ValueError: for an objective that does not return a scalar, or a transform or
            projection that changes a structure.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x) ** 2)
        >>> def upper(x, y, batch):
        ...     return 0.5 * jnp.sum((y - 1) ** 2 + x**2)
        >>> solver = ok.bilevel.soba(upper, lower, outer=optax.sgd(0.2), inner=optax.sgd(0.5))
        >>> state, step = solver.init(jnp.zeros(2), jnp.zeros(2)), jax.jit(solver.step)
        >>> for _ in range(100):
        ...     state, info = step(state, None)
        >>> print(state.x.round(4))
        [0.5 0.5]

    Reference:
        Dagréou, Ablin, Vaiter and Moreau 2022, arXiv:2201.13409, section 2.
    """
    check = Check("ok.bilevel.soba")
    objectives = objectives_of(check, upper, lower)
    moves = movers(check, outer, inner, linear, project_x, project_y)

    def init(x: Params, y: Params) -> SobaState:
        return moves.init(check, x, y)

    def step(state: SobaState, batch: Batch) -> tuple[SobaState, BilevelInfo]:
        given, _ = batches_of(batch)
        F, F_x, F_y = upper_slopes(objectives[0], state.x, state.y, given.upper_x)
        g, g_y, pull = slope_of(objectives[1], state.x, state.y, given.lower_x)
        J_v, H_v = pull(cast_like(state.v, state.y))
        along = directions(state, g_y, J_v, H_v, F_x, F_y)
        after = moves(state, along)
        info = moves.info(state, along, F, g, H_v, F_y)
        is_lost = ~is_finite(after, along), RESULTS.nonfinite_gradient
        always = {"count": after.count}
        return guard(state, after, info, fatal=(is_lost,), always=always)

    return Solver(init, jax.jit(step))


def directions(
    state: SobaState, g_y: Params, J_v: Params, H_v: Params, F_x: Params, F_y: Params
) -> Directions:
    """D_x, D_y and D_v."""
    D_x = cast_like(jax.tree.map(jnp.add, J_v, F_x), state.x)
    D_v = cast_like(jax.tree.map(jnp.add, H_v, F_y), state.v)
    return Directions(D_x, cast_like(g_y, state.y), D_v)


class Moves(NamedTuple):
    """The simultaneous update of x, y and v."""

    x: Move
    y: Move
    v: Move

    def init(self, check: Check, x: Params, y: Params) -> SobaState:
        """Starts v at zero, and the transforms."""
        check_variables(check, x, y)
        x, y = strong(x), strong(y)
        v = jax.tree.map(jnp.zeros_like, widen(y))
        memories = self.x.init(x), self.y.init(y), self.v.init(v)
        return SobaState(x, y, v, *memories, jnp.zeros((), jnp.int32))

    def __call__(self, state: SobaState, along: Directions) -> SobaState:
        """The state after a step."""
        x, outer = self.x(along.x, state.outer, state.x)
        y, inner = self.y(along.y, state.inner, state.y)
        v, linear = self.v(along.v, state.linear, state.v)
        return SobaState(x, y, v, outer, inner, linear, state.count + 1)

    def info(
        self,
        state: SobaState,
        along: Directions,
        F: Array,
        g: Array,
        H_v: Params,
        F_y: Params,
    ) -> BilevelInfo:
        """How the step went."""
        return BilevelInfo(
            F,
            g,
            norm(along.x),
            self.y.residual(along.y, state.y),
            linear_residual=relative_residual(H_v, jax.tree.map(jnp.negative, F_y)),
        )


def movers(
    check: Check,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    linear: optax.GradientTransformation | None,
    project_x: Projection | None,
    project_y: Projection | None,
) -> Moves:
    """The three moves."""
    return Moves(
        mover(check, "x", project_x, outer=outer),
        mover(check, "y", project_y, inner=inner),
        mover(check, "v", linear=inner if linear is None else linear),
    )


def is_finite(after: SobaState, along: Directions) -> Bool[Array, ""]:
    """Of a step: v is like y, so that one pass looks at both."""
    memories = after.outer, after.inner, after.linear
    in_x, in_y = (after.x, along.x), (after.y, after.v, along.y, along.v)
    return all_finite(*in_x) & all_finite(*in_y) & all_finite(memories)
