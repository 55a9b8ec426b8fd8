"""Descent along hypergradients, with a lower variable that goes on where it was."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._check import check_positive_int
from .._solver.solver import Solver
from .._types import Params
from .._vector import (
    norm,
    strong,
)
from ._base import (
    Batch,
    Batches,
    BilevelInfo,
    Objective,
    Projection,
    batches_of,
    check_transform,
    check_variables,
    descend,
    keep_finite,
    objectives_of,
    repeat,
)
from ._hypergradient import (
    AbstractHypergradient,
    check_method,
)


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
    call = "ok.bilevel.hypergradient_descent"
    objectives = objectives_of(call, upper, lower)
    check_transform(call, "outer", outer)
    check_method(call, method)
    check_positive_int(call, "inner_steps", inner_steps)
    _check_inner(call, method, inner, inner_steps, project_y)

    def init(x: Params, y: Params) -> DescentState:
        check_variables(call, x, y)
        x, y = strong(x), strong(y)
        memory = None if inner is None else inner.init(y)
        count = jnp.zeros((), jnp.int32)
        return DescentState(x, y, outer.init(x), memory, method.init(y), count)

    def inner_loop(
        state: DescentState, given: Batches, is_shared: bool
    ) -> tuple[Params, PyTree]:
        if inner is None:
            return state.y, state.inner
        transform = inner

        def body(carry: PyTree, batch: Batch) -> PyTree:
            y, memory = carry
            g_y = jax.grad(objectives[1], argnums=1)(state.x, y, batch)
            return descend(call, "y", transform, g_y, memory, y, project_y)

        carry, batches = (state.y, state.inner), given.lower_y
        return repeat(body, carry, batches, num_steps=inner_steps, is_shared=is_shared)

    def step(state: DescentState, batch: Batch) -> tuple[DescentState, BilevelInfo]:
        given, is_shared = batches_of(batch)
        y, inner_memory = inner_loop(state, given, is_shared)
        gradient, found, memory = method.estimate(
            objectives, state.x, y, (given, is_shared), state.memory
        )
        x, outer_memory = descend(
            call, "x", outer, gradient, state.outer, state.x, project_x
        )
        info = BilevelInfo(
            found.upper,
            found.lower,
            norm(gradient),
            found.residual,
            jnp.full((), jnp.nan, found.upper.dtype),
            found.result,
            found.linear_residual,
        )
        after = DescentState(
            x, found.y, outer_memory, inner_memory, memory, state.count + 1
        )
        return keep_finite(state, after, info)

    return Solver(init, jax.jit(step))


def _check_inner(
    call: str,
    method: AbstractHypergradient,
    inner: Any,
    inner_steps: int,
    project_y: Projection | None,
) -> None:
    """Raises unless somebody moves y, and one alone."""
    name = f"ok.{type(method).__name__}"
    if not method.moves_y:
        if inner is None:
            raise ValueError(
                f"`{call}` needs `inner=`, an optax transform that moves y: `{name}` "
                f"does not."
            )
        check_transform(call, "inner", inner)
    elif inner is not None or inner_steps != 1 or project_y is not None:
        raise ValueError(
            f"`{call}` got inner, inner_steps or project_y beside `{name}`, which "
            f"takes the steps of y itself. Give them to `{name}(num_steps, inner, "
            f"project_y=...)` alone."
        )
