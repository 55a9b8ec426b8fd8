"""Descent along hypergradients, with a lower variable that goes on where it was."""

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
    Batches,
    BilevelInfo,
    Objective,
    batches_of,
    check_variables,
    objectives_of,
    repeat,
)
from ._hypergradient import AbstractHypergradient, HypergradientInfo, check_method


class DescentState(NamedTuple):
    """What the next step of `ok.bilevel.hypergradient_descent` needs."""

    x: Params
    y: Params
    outer: PyTree
    inner: PyTree
    memory: PyTree  # of the method: v, where the linear solve starts warm
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

    where ρ and γ stand for the transforms, and the method says what ∇Φ(x, y) is. y and
    the state of its transform go on from step to step: with this warm start a few
    inner steps, or one, suffice. With `ok.bilevel.Implicit(..., warm_start=True)`, v does too.

    `ok.bilevel.Unrolled` and `ok.bilevel.ForwardMode` take the steps of y themselves, with a transform
    that starts anew, and y goes on from where they arrive: give no `inner` with them.

    The state holds x, y, what the transforms keep, and v where it starts warm: with
    plain `optax.sgd`, |x| + |y| or |x| + 2|y|.

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar.
        outer: the optax transform of x.
        method: as for `ok.bilevel.hypergradient`.
        inner: the optax transform of y, for methods that do not move y.
        inner_steps: T >= 1, how many steps of y come before each one of x.
        project_x: onto the constraint set of x, after its step.
        project_y: onto that of y, after each of its. Where it is active,
            `ok.bilevel.Implicit` is wrong and `ok.bilevel.ImplicitProjected` right.

    Returns:
        An `ok.Solver`. A batch is shared, or an `ok.bilevel.Batches` with T batches as
        `lower_y`, F's as `upper_x`, and that of g's second derivatives as `lower_x`.
        `info.result` is how the linear solve went. A step that is not finite keeps all
        but `count`.

    Raises:
        TypeError: for objectives that are not functions, transforms that are not
            optax's, methods that are none, or variables that are not trees of real
            floating arrays.
        ValueError: for an `inner` that is missing or not wanted, T < 1, an objective
            that does not return a scalar, or a transform or projection that changes a
            structure.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x) ** 2)
        >>> def upper(x, y, batch):
        ...     return 0.5 * jnp.sum((y - 1) ** 2 + x**2)
        >>> solver = ok.bilevel.hypergradient_descent(
        ...     upper, lower, outer=optax.sgd(0.2), inner=optax.sgd(0.5), inner_steps=3,
        ...     method=ok.bilevel.Implicit(ok.CG()))
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
    check_method(check, method)
    check.count(inner_steps=inner_steps)
    move_x = mover(check, "x", project_x, outer=outer)
    move_y = _inner_mover(check, method, inner, inner_steps, project_y)

    def init(x: Params, y: Params) -> DescentState:
        check_variables(check, x, y)
        x, y = strong(x), strong(y)
        memory = None if move_y is None else move_y.init(y)
        count = jnp.zeros((), jnp.int32)
        return DescentState(x, y, move_x.init(x), memory, method.init(y), count)

    def inner_loop(state: DescentState, given: Batches, is_shared: bool) -> PyTree:
        carry = state.y, state.inner
        if move_y is None:
            return carry

        def body(carry: PyTree, batch: Batch) -> PyTree:
            y, memory = carry
            g_y = jax.grad(objectives[1], argnums=1)(state.x, y, batch)
            return move_y(g_y, memory, y)

        batches = given.lower_y
        return repeat(body, carry, batches, num_steps=inner_steps, is_shared=is_shared)

    def step(state: DescentState, batch: Batch) -> tuple[DescentState, BilevelInfo]:
        given, is_shared = batches_of(batch)
        y, memory_y = inner_loop(state, given, is_shared)
        gradient, found, memory = method.estimate(
            objectives, state.x, y, (given, is_shared), state.memory
        )
        x, memory_x = move_x(gradient, state.outer, state.x)
        count = state.count + 1
        after = DescentState(x, found.y, memory_x, memory_y, memory, count)
        return guard(
            state,
            after,
            _info_of(found, gradient),
            fatal=((~all_finite(after), RESULTS.nonfinite_gradient),),
            doubtful=((found.result != RESULTS.successful, found.result),),
            always={"count": count},
        )

    return Solver(init, jax.jit(step))


def _info_of(found: HypergradientInfo, gradient: Params) -> BilevelInfo:
    return BilevelInfo(
        found.value,
        found.lower,
        norm(gradient),
        found.residual_norm,
        linear_residual=found.linear_residual,
    )


def _inner_mover(
    check: Check,
    method: AbstractHypergradient,
    inner: Any,
    inner_steps: int,
    project_y: Projection | None,
) -> Move | None:
    """How y moves, or None where the method moves it itself."""
    name = f"ok.bilevel.{type(method).__name__}"
    if method.moves_y:
        is_free = inner is None and inner_steps == 1 and project_y is None
        text = "got inner, inner_steps or project_y. Pass them to `{name}` alone, which"
        check.that(is_free, f"{text} takes the steps of y itself.".format(name=name))
        return None
    text = f"needs `inner=`, an optax transform that moves y: `{name}` does not."
    check.that(inner is not None, text)
    return mover(check, "y", project_y, inner=inner)
