"""AdaHessian: Adam with the Hessian diagonal as the source of its second moment.

The diagonal is an extra argument, `update(..., hessian_diag=...)`. A random estimate is
noisy, so it is averaged over steps and optionally over parts of a leaf.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule
from ._averages import Average
from ._base import WIDE, descent, leafwise, stored_in, widened


class AdaHessianState(NamedTuple):
    """Steps taken, mean gradient m, and mean square v of the averaged diagonal."""

    count: Int[Array, ""]
    m: Params
    v: Params


def scale_by_adahessian(
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    hessian_power: Any = 1.0,
    *,
    average: Average | None = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by the root mean square of the Hessian diagonal.

    With g the gradient, h the signed diagonal that `update` receives as
    `hessian_diag=`, A the average over parts of a leaf, k the power, t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) A(h)^2
        u  = m / (1 - b1^t) / ((sqrt(v) / sqrt(1 - b2^t))^k + eps)

    By default A is the identity, and signs do not matter. `ok.optim.average_rows`,
    `ok.optim.average_conv_kernels` and `ok.optim.average_blocks(32)` average |h|, as in
    the authors' code, or h with `signed=True`, as in their paper. One probe has
    E[h_i^2] = sum_j H_ij^2: √v tends to the norm of a row of H, unless averages or more
    probes remove that noise.

    Departs from the authors' code: (1) averages follow the layout of Flax or, with
    `axes=`, that of Equinox, so they cover the same weights; (2) 3-D leaves, for which
    one of their versions reuses the diagonal of the previous leaf, are averaged by
    `ok.optim.average_rows` and `ok.optim.average_blocks`, not by
    `ok.optim.average_conv_kernels`; (3) across devices, average the diagonal where you
    average the gradient, with the same probes on each: theirs does not average it, and
    its probes are biased; (4) an entry whose h^2 overflows is NaN, not zero; (5)
    nothing is averaged unless you pass `average=`: their image code averages all leaves
    with four axes.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added outside root and power, >= 0. It sets the step where the curvature
            is zero, as in dead units, hence 1e-4 rather than Adam's 1e-8.
        hessian_power: k >= 0; 1 is Newton's scale, 1/2 is sometimes better.
        average: A, a function from a leaf of the diagonal to an array of its shape.
            With `optax.inject_hyperparams`, name it in `static_args`.
        state_dtype: a floating dtype for m. Default: that of the leaf, at least
            float32. v is always at least float32.

    Returns:
        A transform with an `ok.optim.AdaHessianState`, twice as large as float32
        params. Its `update` needs `hessian_diag=`, a pytree like the params, from
        `ok.value_grad_and_diag` or `ok.optim.with_hutchinson`.

    Raises:
        ValueError: for hyperparameters out of range, or trees missing or mismatched; in
            `init`, if `average` does not fit a leaf.
        TypeError: for leaves that are not real or a `state_dtype` that is not floating.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> params, diag = jnp.array([3.0, -2.0]), jnp.array([2.0, 100.0])
        >>> tx = ok.optim.scale_by_adahessian(eps=0.0)
        >>> updates, _ = tx.update(diag * params, tx.init(params), hessian_diag=diag)
        >>> print(updates.round())  # Newton's step: to zero, whatever the curvature
        [ 3. -2.]

    Reference:
        Yao et al. 2021, arXiv:2006.00719, and its official code.
    """
    check = Check("ok.optim.scale_by_adahessian")
    return _scale(check, (b1, b2, eps, hessian_power), average, state_dtype)


def _scale(
    check: Check, hyper: tuple[Any, ...], average: Average | None, state_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    b1, b2, eps, hessian_power = hyper
    check.decay(b1=b1, b2=b2)
    check.non_negative(eps=eps, hessian_power=hessian_power)
    check.optional.dtype(state_dtype=state_dtype)
    check.optional.function(average=average)
    is_plain = isinstance(hessian_power, int | float) and hessian_power == 1

    def rule(g: Any, h: Any, s: Any, t: Any, b1: Any, b2: Any, eps: Any, k: Any) -> Any:
        h = h if average is None else average(h)
        m = b1 * s.m + (1 - b1) * g
        v = b2 * s.v + (1 - b2) * h**2
        # The root has no derivative at 0; there it is taken at 1, and not used.
        root = jnp.sqrt(jnp.where(v > 0, v, 1)) / jnp.sqrt(1 - b2**t)
        power = jnp.where(v > 0, root if is_plain else root**k, 0**k)
        u = m / (1 - b1**t) / (power + eps)
        return u, s._replace(m=m, v=v)

    def check_params(params: Params) -> None:
        check.real(params=params)
        if average is not None:
            h = widened(params)
            A_h = jax.tree.map(partial(jax.eval_shape, average), h)
            advice = "Broadcast the mean back, as `ok.optim.average_rows` does."
            check.like("average(hessian_diag)", A_h, h, "the params", advice)

    return leafwise(
        check,
        rule,
        AdaHessianState,
        moments={"v": WIDE, "m": stored_in(state_dtype)},
        decays=(b1, b2),
        hyper=(eps, hessian_power),
        reads=("hessian_diag",),
        guard=("v",),
        check_params=check_params,
    )


def adahessian(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    hessian_power: Any = 1.0,
    weight_decay: Any = None,
    *,
    average: Average | None = None,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian (Yao et al. 2021, arXiv:2006.00719) with decoupled weight decay.

    With u from `ok.optim.scale_by_adahessian`, which numbers every departure, η the
    learning rate and λ the weight decay:

        θ <- θ - η (u + λ θ)

    Where the Hessian is diagonal, a step is Newton's. So learning rates are near 1, not
    1e-3: the authors use 0.15 for images and 0.047 for translation.

    b1, b2, `eps`, `hessian_power`, `average` and `state_dtype` are those of
    `ok.optim.scale_by_adahessian`; the learning rate, the weight decay and the mask are
    those of `ok.optim.adan`.

    Returns:
        An optax transform whose `update` needs `hessian_diag=`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p: jnp.sum((p - 3.0) ** 4)
        >>> f, tx = jax.jit(ok.value_grad_and_diag(loss)), ok.optim.adahessian(0.15)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for key in jax.random.split(jax.random.key(0), 50):
        ...     _, grads, diag = f(params, key=key)
        ...     updates, state = tx.update(grads, state, params, hessian_diag=diag)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 1.0)  # from 641.0
        True
    """
    check = Check("ok.optim.adahessian")
    scale = _scale(check, (b1, b2, eps, hessian_power), average, state_dtype)
    return descent(check, [scale], learning_rate, weight_decay, mask)
