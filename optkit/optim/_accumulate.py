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

from .._check import (
    check_inexact,
    check_like,
    check_positive_int,
    check_transform,
)
from .._types import (
    Params,
    wide_dtype,
)
from ._base import (
    accumulated_in,
    checked_diag,
)


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
    call = "ok.optim.accumulate"
    check_transform(call, "tx", tx)
    inner = optax.with_extra_args_support(tx)
    check_positive_int(call, "every", every)

    def init(params: Params) -> AccumulateState:
        check_inexact(call, params)

        def zeros() -> Params:
            return jax.tree.map(lambda p: jnp.zeros_like(p, wide_dtype(p)), params)

        count, diag = jnp.zeros([], jnp.int32), zeros() if hessian_diag else None
        return AccumulateState(count, zeros(), diag, inner.init(params))

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, AccumulateState]:
        check_like(call, "gradients", updates, state.grads, accumulated_in)
        h = extra_args.pop("hessian_diag", None)
        has_diag = h is not None
        if has_diag and state.hessian_diag is None:
            raise ValueError(
                f"`{call}` got hessian_diag= and its state has no room for it. Make it "
                f"with `ok.optim.accumulate(tx, every, hessian_diag=True)`, the default."
            )
        grads, diag = jax.tree.map(_add, state.grads, updates), state.hessian_diag
        if has_diag:
            h = checked_diag(call, h, updates, state.grads)
            diag = jax.tree.map(_add, diag, h)

        def emit() -> tuple[Params, Any]:
            extra = extra_args
            if has_diag:
                extra = extra | {"hessian_diag": _mean(diag, h, every)}
            mean = _mean(grads, updates, every)
            return inner.update(mean, state.inner_state, params, **extra)

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
        grads, diag = jax.tree.map(
            lambda x: jnp.where(is_last, jnp.zeros_like(x), x), (grads, diag)
        )
        count = jnp.where(is_last, 0, state.count + 1)
        return updates, AccumulateState(count, grads, diag, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _add(total: Any, x: Any) -> Array:
    return total + jnp.asarray(x, total.dtype)


def _mean(total: Params, like: Params, num: int) -> Params:
    return jax.tree.map(lambda s, x: (s / num).astype(jnp.result_type(x)), total, like)
