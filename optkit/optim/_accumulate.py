"""Accumulation of gradients and of Hessian diagonals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from .._check import Check
from .._types import Params
from .._vector import cast_like
from ._base import WIDE, check_gradients, required


class AccumulateState(NamedTuple):
    """The sums over `count` micro-steps, in float32 or wider, and the state of `tx`."""

    count: Int[Array, ""]
    grads: Params
    hessian_diag: Params
    inner_state: Any


def accumulate(
    tx: optax.GradientTransformation, every: int, *, hessian_diag: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Averages gradient and Hessian diagonal over `every` updates, then steps once.

    With g_i and h_i those of micro-step i of a window, the last micro-step returns

        tx.update(mean of g_i, state, params, hessian_diag=mean of h_i)

    The others return zeros and do not run `tx`, whereas `optax.MultiSteps` runs it in
    each and discards the result. A NaN affects only its window: the step of that window
    is NaN, for an inner `optax.apply_if_finite` to reject, and the next one is clean.

    `ok.optim.with_hutchinson` may be the inner or the outer transform. Inside, with
    `hessian_diag=False`, it makes one curvature pass per window, on the last
    micro-batch. Outside, it makes one per micro-step, averaged like the gradient.

    Args:
        tx: any optax transform.
        every: the number of updates in a window, >= 1. They have equal weights.
        hessian_diag: whether to keep a sum of diagonals, as large as float32 params.

    Returns:
        A transform with an `ok.optim.AccumulateState`. Pass `hessian_diag=` to all
        updates or to none. `tx` gets the other extra arguments of the last micro-step.

    Raises:
        ValueError: for trees unlike the params, or a diagonal if `hessian_diag=False`.
        TypeError: if `tx` is not an optax transform; for leaves of a wrong dtype.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> tx = ok.optim.accumulate(optax.sgd(1.0), every=2)
        >>> zeros, state = tx.update(jnp.array([1.0]), tx.init(jnp.zeros(1)))
        >>> updates, state = tx.update(jnp.array([3.0]), state)
        >>> print(zeros, updates)
        [0.] [-2.]
    """
    check = Check("ok.optim.accumulate")
    check.transform(tx=tx)
    check.count(every=every)
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> AccumulateState:
        check.inexact(params=params)
        count, grads = jnp.zeros([], jnp.int32), jax.tree.map(WIDE, params)
        diag = jax.tree.map(WIDE, params) if hessian_diag else None
        return AccumulateState(count, grads, diag, inner.init(params))

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, AccumulateState]:
        check_gradients(check, updates, state.grads)
        sums, terms = {"grads": state.grads}, {"grads": updates}
        if (h := extra.pop("hessian_diag", None)) is not None:
            text = "got hessian_diag=, but was made with hessian_diag=False. Omit one."
            check.that(state.hessian_diag is not None, text)
            sums["hessian_diag"] = state.hessian_diag
            terms["hessian_diag"] = required(check, "hessian_diag", h, updates)
        sums = jax.tree.map(lambda s, x: s + jnp.asarray(x, s.dtype), sums, terms)

        def emit() -> tuple[Params, Any]:
            means = cast_like(jax.tree.map(lambda s: s / every, sums), terms)
            grads = means.pop("grads")
            return inner.update(grads, state.inner_state, params, **extra, **means)

        if every == 1:
            updates, inner_state = emit()
            return updates, state._replace(inner_state=inner_state)
        # Zeros have explicit shardings here; in the branch, only under `jax.jit`.
        shapes, _ = jax.eval_shape(emit)
        zeros = cast_like(optax.tree.zeros_like(updates), shapes)

        def wait() -> tuple[Params, Any]:
            return zeros, state.inner_state

        is_last = state.count == every - 1
        updates, inner_state = lax.cond(is_last, emit, wait)
        # Select, do not multiply by zero: a NaN must not outlive its window.
        sums = jax.tree.map(lambda x: jnp.where(is_last, jnp.zeros_like(x), x), sums)
        count = jnp.where(is_last, 0, state.count + 1)
        return updates, state._replace(count=count, inner_state=inner_state, **sums)

    return optax.GradientTransformationExtraArgs(init, update)
