"""Descent along hypergradients, with a warm start for the lower variable."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.guard import guard
from .._solver.move import Move, Projection, mover
from .._solver.solver import Solver
from .._types import Params
from .._vector import all_finite, norm, strong
from ._base import (
    Batch,
    BilevelInfo,
    InnerBatches,
    Objective,
    batches_of,
    inner_step,
    next_count,
    objectives_of,
)
from ._hypergradient import METHOD, AbstractHypergradient


class DescentState(NamedTuple):
    """What the next step of `ok.bilevel.hypergradient_descent` needs."""

    x: Params
    y: Params
    outer: PyTree
    inner: PyTree
    memory: PyTree  # of the method: v, if the linear solve has a warm start
    count: Int[Array, ""]  # of calls


def hypergradient_descent(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    method: AbstractHypergradient,
    inner: optax.GradientTransformation | None = None,
    inner_steps: int = 1,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Alternates steps of y with a step of x along an estimated hypergradient.

        T times: y <- y - ρ ∇_y g(x, y)        then x <- x - γ ∇Φ(x, y)

    ρ and γ stand for the transforms; the method defines ∇Φ(x, y). y and its opt_state
    carry over from step to step. With this warm start a few inner steps, or even one,
    are enough. `ok.bilevel.Implicit(..., warm_start=True)` carries over v too.

    `ok.bilevel.Unrolled` and `ok.bilevel.ForwardMode` take the steps of y themselves,
    with a fresh opt_state, and y continues from where they end. So pass no `inner`.

    The state holds x, y, the opt_states, and v if it is kept: with plain `optax.sgd`,
    |x| + |y| or |x| + 2|y| numbers.

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar.
        outer: the optax transform of x.
        method: as for `ok.bilevel.hypergradient`.
        inner: the optax transform of y, for methods that do not move y.
        inner_steps: T >= 1, the steps of y before each step of x.
        project_x: onto the constraint set of x, after each of its steps.
        project_y: onto the constraint set of y, after each of its steps. Where it is
            active, `ok.bilevel.Implicit` is wrong: use `ok.bilevel.ImplicitProjected`.

    Returns:
        An `ok.Solver`. A batch is shared, or an `ok.bilevel.Batches` with T batches in
        `lower_y`, one for F in `upper_x`, and one for g's second derivatives in
        `lower_x`. `info.result` reports the linear solve. A step that is not finite
        changes only `count`.

    Raises:
        ValueError: if the method needs `inner` and it is missing, or the reverse.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: 0.5 * jnp.sum((y - 1) ** 2 + x**2)
        >>> options = {"outer": optax.sgd(0.2), "inner": optax.sgd(0.5)}
        >>> method = ok.bilevel.Implicit(ok.CG())
        >>> solver = ok.bilevel.hypergradient_descent(
        ...     upper, lower, method=method, inner_steps=3, **options)
        >>> state = solver.init(jnp.zeros(2), jnp.zeros(2))
        >>> for _ in range(50):
        ...     state, info = solver.step(state, None)
        >>> print(state.x.round(4))
        [0.5 0.5]

    Reference:
        Ghadimi and Wang 2018, arXiv:1802.02246; with warm starts, Arbel and Mairal
        2022, arXiv:2111.14580; unrolled, Franceschi et al. 2018, arXiv:1806.04910.
    """
    check = Check("ok.bilevel.hypergradient_descent")
    objectives = objectives_of(check, upper, lower)
    check.instance(AbstractHypergradient, METHOD, method=method)
    check.count(inner_steps=inner_steps)
    move_x = mover(check, "x", project_x, outer=outer)
    move_y = _inner_mover(check, method, inner, inner_steps, project_y)

    def init(x: Params, y: Params) -> DescentState:
        check.real(x=x, y=y)
        x, y = strong(x), strong(y)
        opt_y = None if move_y is None else move_y.init(y)
        count = jnp.zeros((), jnp.int32)
        return DescentState(x, y, move_x.init(x), opt_y, method.init(y), count)

    def step(state: DescentState, batch: Batch) -> tuple[DescentState, BilevelInfo]:
        batches, is_shared = batches_of(batch)
        y, opt_y = state.y, state.inner
        if move_y is not None:
            inner_batches = InnerBatches(batches.lower_y, is_shared)
            body = inner_step(objectives[1], move_y, state.x)
            y, opt_y = inner_batches.loop(body, (y, opt_y), inner_steps)
        gradient, found, memory = method.estimate(
            objectives, state.x, y, (batches, is_shared), state.memory
        )
        x, opt_x = move_x(gradient, state.outer, state.x)
        count = next_count(state.count)
        after = DescentState(x, found.y, opt_x, opt_y, memory, count)
        size, linear = norm(gradient), found.linear_residual
        info = BilevelInfo(found.value, found.lower, size, found.residual_norm)
        info = info._replace(linear_residual=linear)
        return guard(
            state,
            after,
            info,
            fatal=((~all_finite(after), RESULTS.nonfinite_gradient),),
            doubtful=((found.result != RESULTS.successful, found.result),),
            always={"count": count},
        )

    return Solver(init, jax.jit(step))


def _inner_mover(
    check: Check,
    method: AbstractHypergradient,
    inner: Any,
    inner_steps: int,
    project_y: Projection | None,
) -> Move | None:
    """How y moves, or None if the method moves it."""
    name = f"ok.bilevel.{type(method).__name__}"
    if method.moves_y:
        is_free = inner is None and inner_steps == 1 and project_y is None
        text = "takes no inner, inner_steps or project_y here. Pass them to"
        check.that(is_free, f"{text} `{name}`, which takes the steps of y itself.")
        return None
    text = f"needs `inner=`, an optax transform of y: `{name}` does not move y."
    check.that(inner is not None, text)
    return mover(check, "y", project_y, inner=inner)
