"""AdaHessian: Adam whose second moment is of the Hessian diagonal, not the gradient.

The diagonal is data beside the gradient: `update(..., hessian_diag=...)`. A randomised
estimate is noisy, so it is averaged over steps and, if wanted, over parts of a leaf.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule, wide_dtype
from ._averages import Average
from ._base import WIDE, descent, leafwise, stored_in


class AdaHessianState(NamedTuple):
    """What AdaHessian's next step needs; each tree has the shapes of the params.

    Attributes:
        count: steps taken.
        m: mean gradient.
        v: mean square of the averaged Hessian diagonal.
    """

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

    A is the identity by default, where signs do not matter. The authors' code takes
    the modulus of h before it averages, their paper does not:

        average=                                    mean over          of
        ok.optim.average_conv_kernels                     kernel positions   |h|, the code
        partial(ok.optim.average_conv_kernels, signed=True)       "           h, the paper
        ok.optim.average_rows                             inputs             |h|, the code
        partial(ok.optim.average_rows, signed=True)               "           h, the paper
        ok.optim.average_blocks(32)                       32 neighbours      |h|, the code
        ok.optim.average_blocks(32, signed=True)                  "           h, the paper

    Departs from the authors' code: (1) averages follow JAX's layouts of kernels, so
    they are over the same weights; (2) 3-D leaves, for which one of their versions
    reuses the previous leaf's diagonal, are averaged by `ok.optim.average_rows` and
    `ok.optim.average_blocks`, and not by `ok.optim.average_conv_kernels`; (3) over devices the
    diagonal is averaged where you average the gradient, with the same probes on each:
    theirs forgets to, and its probes are biased; (4) an entry whose h^2 overflows is
    NaN, for `optax.apply_if_finite` to reject, and not zero.

    One probe has E[h_i^2] = sum_j H_ij^2, so √v tends to the norm of a row of H, not to
    its diagonal entry, unless averages or more probes remove the noise.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean square, in [0, 1).
        eps: added outside root and power; not negative. It is the step's scale
            where the curvature is zero, as in dead units: 1e-4, not Adam's 1e-8.
        hessian_power: k >= 0; 1 is Newton's scale, 1/2 is sometimes better.
        average: A, a function from a leaf of the diagonal to an array of its shape.
            With `optax.inject_hyperparams`, name it in `static_args`.
        state_dtype: a floating dtype for m. Default: the leaf's own, at least
            float32. v is at least float32 always.

    Returns:
        A transform whose state is an `ok.optim.AdaHessianState`: twice the memory of float32
        params. Its `update` needs `hessian_diag=`, a tree like the params: from
        `ok.value_grad_and_diag`, or through `ok.optim.with_hutchinson`. Updates have the
        sign of the gradient, as all `scale_by_*`.

    Raises:
        ValueError: for a decay outside [0, 1), a negative eps or power; in `init`, for
            a leaf that `average` cannot do; in `update`, without `hessian_diag`, or
            for trees of another structure or shape than the params.
        TypeError: for a `state_dtype` that is not floating; in `init`, for leaves that
            are not real; in `update`, for another dtype.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> f = ok.value_grad_and_diag(lambda p: jnp.sum(jnp.array([1.0, 50.0]) * p**2))
        >>> tx = ok.optim.scale_by_adahessian(eps=0.0)
        >>> params = jnp.array([3.0, -2.0])
        >>> _, grads, diag = f(params, key=jax.random.key(0))
        >>> updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
        >>> print(updates.round())  # Newton's step: to zero, whatever the curvature
        [ 3. -2.]

    Reference:
        Yao et al. 2021, arXiv:2006.00719, and its official code.
    """
    check = Check("ok.optim.scale_by_adahessian")
    return _scale(check, b1, b2, eps, hessian_power, average, state_dtype)


def _scale(
    check: Check,
    b1: Any,
    b2: Any,
    eps: Any,
    hessian_power: Any,
    average: Average | None,
    state_dtype: Any,
) -> optax.GradientTransformationExtraArgs:
    check.decay(b1=b1, b2=b2)
    check.non_negative(eps=eps, hessian_power=hessian_power)
    check.optional.dtype(state_dtype=state_dtype)
    check.optional.function(average=average)
    is_plain = isinstance(hessian_power, int | float) and hessian_power == 1

    def rule(
        g: Any, h: Any, s: Any, t: Any, β1: Any, β2: Any, ε: Any, k: Any
    ) -> tuple[Any, Any]:
        h = h if average is None else average(h)
        m = β1 * s.m + (1 - β1) * g
        v = β2 * s.v + (1 - β2) * h**2
        # The root is of 1 where v is 0: there it has no derivative.
        root = jnp.sqrt(jnp.where(v > 0, v, 1)) / jnp.sqrt(1 - β2**t)
        power = jnp.where(v > 0, root if is_plain else root**k, 0**k)
        u = m / (1 - β1**t) / (power + ε)
        return u, s._replace(m=m, v=v)

    def accepts(params: Params) -> None:
        check.real(params=params)
        if average is not None:
            _check_average(check, average, params)

    return leafwise(
        check,
        rule,
        AdaHessianState,
        moments={"v": WIDE, "m": stored_in(state_dtype)},
        hyper=(b1, b2, eps, hessian_power),
        reads="hessian_diag",
        guard=("v",),
        accepts=accepts,
    )


def adahessian(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.9,
    b2: Any = 0.999,
    eps: Any = 1e-4,
    hessian_power: Any = 1.0,
    weight_decay: Any = 0.0,
    *,
    average: Average | None = None,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """AdaHessian with decoupled weight decay, as its authors run it.

    With u from `ok.optim.scale_by_adahessian`, where every departure is numbered,
    eta the learning rate and lambda the weight decay:

        theta <- theta - eta (u + lambda theta)

    A step is Newton's where the Hessian is diagonal, so learning rates are near 1
    rather than 1e-3: the authors use 0.15 for images, 0.047 for translation.

    Args:
        learning_rate: a number >= 0 or a schedule.
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean square of the diagonal, in [0, 1).
        eps: added outside root and power; not negative.
        hessian_power: k >= 0; 1 is Newton's scale.
        weight_decay: a number >= 0 or a schedule. At the number 0 the decay is left
            out, and `update` needs no params.
        average: `ok.optim.average_conv_kernels`, `ok.optim.average_rows`, `ok.optim.average_blocks(B)`,
            or a function of your own; see `ok.optim.scale_by_adahessian`.
        mask: optax's mask of the leaves that decay; the others still get their step.
        state_dtype: see `ok.optim.scale_by_adahessian`.

    Returns:
        An optax transform whose `update` needs `hessian_diag=`.

    Raises:
        ValueError: for a negative learning rate or weight decay, and as
            `ok.optim.scale_by_adahessian`; in `update`, for weight decay without params.
        TypeError: as `ok.optim.scale_by_adahessian`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p: jnp.sum((p - 3.0) ** 4)
        >>> tx, value_grad_diag = ok.optim.adahessian(0.15), ok.value_grad_and_diag(loss)
        >>> @jax.jit
        ... def step(params, state, key):
        ...     _, grads, diag = value_grad_diag(params, key=key)
        ...     updates, state = tx.update(grads, state, params, hessian_diag=diag)
        ...     return optax.apply_updates(params, updates), state
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> for key in jax.random.split(jax.random.key(0), 50):
        ...     params, state = step(params, state, key)
        >>> bool(loss(params) < 1.0)  # from 641.0
        True

    Reference:
        Yao et al. 2021, arXiv:2006.00719, and its official code.
    """
    check = Check("ok.optim.adahessian")
    scale = _scale(check, b1, b2, eps, hessian_power, average, state_dtype)
    return descent(check, scale, learning_rate, weight_decay, mask)


def _check_average(check: Check, average: Average, params: Params) -> None:
    """Raises unless `average` keeps the shape of every leaf."""
    wide = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(jnp.shape(p), wide_dtype(p)), params
    )
    got = jax.tree.map(lambda leaf: jax.eval_shape(average, leaf), wide)
    advice = "Broadcast the mean back, as `ok.optim.average_rows` does."
    check.like("the average", got, wide, "its leaf", advice)
