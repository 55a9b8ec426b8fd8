"""Gradient accumulation that accumulates curvature too.

A step of the wrapped optimizer costs what it costs once for every `every` gradients,
and not, as with `optax.MultiSteps`, at each of them with its result thrown away.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Int

from .._check import Check
from .._types import Params
from .._vector import cast_like
from ._base import WIDE, check_gradients, checked_diag


class AccumulateState(NamedTuple):
    """The sums over the micro-steps since the last step, in float32 or wider.

    Attributes:
        count: micro-steps summed, below `every`.
        grads: the sum of gradients.
        hessian_diag: the sum of Hessian diagonals, or None.
        inner_state: of the wrapped optimizer.
    """

    count: Int[Array, ""]
    grads: Params
    hessian_diag: Params
    inner_state: Any


def accumulate(
    tx: optax.GradientTransformation, every: int, *, hessian_diag: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Averages gradient and Hessian diagonal over `every` updates, then steps once.

    With g_i and h_i what micro-step i of a window receives as gradient and as
    `hessian_diag=`, the last one of the window returns

        tx.update(mean of g_i, state, params, hessian_diag=mean of h_i)

    and the others return zeros and do not run `tx`, nor anything in it. A NaN stays
    in its window: the step of that window is NaN, for `optax.apply_if_finite` inside
    to reject, and the next window is clean.

    Where the diagonal comes from `ok.optim.with_hutchinson`, there are two places for it:

        ok.optim.accumulate(ok.optim.with_hutchinson(tx, key=key), 8, hessian_diag=False)
            one curvature pass a window, on its last micro-batch
        ok.optim.with_hutchinson(ok.optim.accumulate(tx, 8), key=key)
            one a micro-step, averaged over the window as the gradient is

    Args:
        tx: any optax transform.
        every: updates in a window, at least 1. All weigh the same.
        hessian_diag: whether the state keeps a sum for diagonals; without, it is
            smaller by one float32 copy of the params.

    Returns:
        A transform whose state is an `ok.optim.AccumulateState`. Pass `hessian_diag=` to all
        updates or to none. Other extra arguments reach `tx` as they are on the last
        micro-step of the window.

    Raises:
        ValueError: for `every` < 1; in `update`, for a diagonal that the state has no
            room for, or trees of another structure or shape than the params.
        TypeError: for a `tx` that is no optax transform; for leaves, gradients or
            diagonals of the wrong dtype.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> tx = ok.optim.accumulate(optax.sgd(1.0), every=2)
        >>> state = tx.init(jnp.zeros(1))
        >>> for g in (1.0, 3.0):
        ...     updates, state = tx.update(jnp.array([g]), state)
        ...     print(updates)
        [0.]
        [-2.]
    """
    check = Check("ok.optim.accumulate")
    check.transform(tx=tx)
    check.count(every=every)
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> AccumulateState:
        check.inexact(params=params)
        count, zeros = jnp.zeros([], jnp.int32), WIDE.like(params)
        diag = WIDE.like(params) if hessian_diag else None
        return AccumulateState(count, zeros, diag, inner.init(params))

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, AccumulateState]:
        check_gradients(check, updates, state.grads)
        sums, terms = {"grads": state.grads}, {"grads": updates}
        if (h := extra_args.pop("hessian_diag", None)) is not None:
            text = "got hessian_diag=, and was made with hessian_diag=False. Leave one."
            check.that(state.hessian_diag is not None, text)
            sums["hessian_diag"] = state.hessian_diag
            terms["hessian_diag"] = checked_diag(check, h, updates, state.grads)
        sums = jax.tree.map(_add, sums, terms)

        def emit() -> tuple[Params, Any]:
            means = cast_like(jax.tree.map(lambda s: s / every, sums), terms)
            grads = means.pop("grads")
            return inner.update(grads, state.inner_state, params, **extra_args, **means)

        if every == 1:
            updates, inner_state = emit()
            return updates, state._replace(inner_state=inner_state)
        shapes, _ = jax.eval_shape(emit)

        def wait() -> tuple[Params, Any]:
            zeros = jax.tree.map(
                lambda g, u: jnp.zeros_like(g, u.dtype), updates, shapes
            )
            return zeros, state.inner_state

        is_last = state.count == every - 1
        updates, inner_state = lax.cond(is_last, emit, wait)
        # Selected, not multiplied by zero: a NaN must not outlive its window.
        sums = jax.tree.map(lambda x: jnp.where(is_last, jnp.zeros_like(x), x), sums)
        count = jnp.where(is_last, 0, state.count + 1)
        return updates, state._replace(count=count, inner_state=inner_state, **sums)

    return optax.GradientTransformationExtraArgs(init, update)


def _add(total: Any, x: Any) -> Array:
    return total + jnp.asarray(x, total.dtype)
