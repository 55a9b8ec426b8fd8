"""SOBA: one loop that moves x, y and the linear system of the hypergradient at once.

The sign of v is the paper's: v tends to -H⁻¹ ∇_y F. So both directions below are sums,
and D_x tends to ∇Φ = ∇_x F - J H⁻¹ ∇_y F.
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
    lower_gradient,
    next_count,
    objectives_of,
    relative_residual,
    upper_gradients,
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


class Quantities(NamedTuple):
    """The quantities of a step."""

    F_x: Params
    F_y: Params
    g_y: Params
    J_v: Params
    H_v: Params


class Directions(NamedTuple):
    """The directions that the three variables descend along."""

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

    ρ and γ stand for the transforms. ∇_y g, H v and J v come from one pass and its vjp,
    so a step costs about three gradients of g and one of F, and solves nothing. The
    lower objective must be strongly convex in y. With noise, step sizes must decrease,
    as (k + 1)^-½ in the paper's theory and experiments:
    `optax.sgd(lambda k: 0.1 / (k + 1) ** 0.5)`. For finite sums, use `ok.bilevel.saba`.
    `optax.ema` in `outer` averages D_x, which removes a condition of the theory.

    The state holds x, y, v and the opt_states: |x| + 2|y| numbers with plain
    `optax.sgd`.

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar.
        outer: the optax transform of x.
        inner: the transform of y.
        linear: the transform of v; default `inner` with its own opt_state. It is as
            stable for v as for y, since H is the same. Use `optax.sgd` if `inner` is
            adaptive.
        project_x: onto the constraint set of x.
        project_y: onto that of y. D_v ignores it: if a constraint on y is active, x
            does not descend along ∇Φ.

    Returns:
        An `ok.Solver`. A batch is shared, or an `ok.bilevel.Batches` with F's batch in
        `upper_x` and g's in `lower_x`. `info.residual_norm` is |∇_y g|, and
        `info.linear_residual` is |D_v| / |∇_y F|. A step that is not finite changes
        only `count`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: 0.5 * jnp.sum((y - 1) ** 2 + x**2)
        >>> transforms = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5)}
        >>> solver = ok.bilevel.soba(upper, lower, **transforms)
        >>> state = solver.init(jnp.zeros(2), jnp.zeros(2))
        >>> for _ in range(100):
        ...     state, info = solver.step(state, None)
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
        (x, y), (given, _) = state[:2], batches_of(batch)
        F, F_x, F_y = upper_gradients(objectives[0], x, y, given.upper_x)
        g, g_y, pull = lower_gradient(objectives[1], x, y, given.lower_x)
        q = Quantities(F_x, F_y, g_y, *pull(cast_like(state.v, y)))
        after, along = moves(state, q)
        info = moves.info(state, q, along, F, g)
        is_lost = ~is_finite(after, along), RESULTS.nonfinite_gradient
        always = {"count": after.count}
        return guard(state, after, info, fatal=(is_lost,), always=always)

    return Solver(init, jax.jit(step))


class Moves(NamedTuple):
    """The simultaneous update of x, y and v."""

    x: Move
    y: Move
    v: Move

    def init(self, check: Check, x: Params, y: Params) -> SobaState:
        """The first state, with v = 0."""
        check.real(x=x, y=y)
        x, y = strong(x), strong(y)
        v = jax.tree.map(jnp.zeros_like, widen(y))
        opt_states = self.x.init(x), self.y.init(y), self.v.init(v)
        return SobaState(x, y, v, *opt_states, jnp.zeros((), jnp.int32))

    def __call__(self, state: SobaState, q: Quantities) -> tuple[SobaState, Directions]:
        """The state after a step, and D_x, D_y and D_v."""
        D_x = cast_like(jax.tree.map(jnp.add, q.J_v, q.F_x), state.x)
        D_y = cast_like(q.g_y, state.y)
        D_v = cast_like(jax.tree.map(jnp.add, q.H_v, q.F_y), state.v)
        x, outer = self.x(D_x, state.outer, state.x)
        y, inner = self.y(D_y, state.inner, state.y)
        v, linear = self.v(D_v, state.linear, state.v)
        after = SobaState(x, y, v, outer, inner, linear, next_count(state.count))
        return after, Directions(D_x, D_y, D_v)

    def info(
        self, state: SobaState, q: Quantities, along: Directions, F: Array, g: Array
    ) -> BilevelInfo:
        """The report on a step."""
        residual = self.y.residual(along.y, state.y)
        linear = relative_residual(q.H_v, jax.tree.map(jnp.negative, q.F_y))
        return BilevelInfo(F, g, norm(along.x), residual, linear_residual=linear)


def movers(
    check: Check,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    linear: optax.GradientTransformation | None,
    project_x: Projection | None,
    project_y: Projection | None,
) -> Moves:
    """The moves, from the user's arguments."""
    return Moves(
        mover(check, "x", project_x, outer=outer),
        mover(check, "y", project_y, inner=inner),
        mover(check, "v", linear=inner if linear is None else linear),
    )


def is_finite(after: SobaState, along: Directions) -> Bool[Array, ""]:
    """Whether a step is finite. v is like y, so one pass reads both."""
    opt_states = after.outer, after.inner, after.linear
    in_x, in_y = (after.x, along.x), (after.y, after.v, along.y, along.v)
    return all_finite(*in_x) & all_finite(*in_y) & all_finite(opt_states)
