"""AdaHessian: Adam whose second moment is of the Hessian diagonal, not the gradient.

The diagonal is data beside the gradient: `update(..., hessian_diag=...)`. A randomised
estimate is noisy, so it is averaged over steps and, if wanted, over parts of a leaf.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
from jaxtyping import Array, Int

from .._check import (
    check_decay,
    check_like,
    check_non_negative,
    check_real_params,
    check_state_dtype,
)
from .._types import (
    MaskOrFn,
    Params,
    ScalarOrSchedule,
    wide_dtype,
)
from ._base import (
    Average,
    accumulated_in,
    checked_diag,
)
from ._decay import is_zero


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
    call = "ok.optim.scale_by_adahessian"
    check_decay(call, "b1", b1)
    check_decay(call, "b2", b2)
    check_non_negative(call, "eps", eps)
    check_non_negative(call, "hessian_power", hessian_power)
    check_state_dtype(call, state_dtype)
    is_plain = isinstance(hessian_power, int | float) and hessian_power == 1

    def init(params: Params) -> AdaHessianState:
        check_real_params(call, params)
        if average is not None:
            _check_average(call, average, params)

        def zeros(dtype: Any) -> Params:
            return jax.tree.map(
                lambda p: jnp.zeros_like(p, dtype or wide_dtype(p)), params
            )

        count = jnp.zeros([], jnp.int32)
        return AdaHessianState(count, zeros(state_dtype), zeros(None))

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        *,
        hessian_diag: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, AdaHessianState]:
        del params, extra_args
        check_like(call, "gradients", updates, state.v, accumulated_in)
        diag = checked_diag(call, hessian_diag, updates, state.v)
        t = jnp.asarray(optax.safe_increment(state.count))

        def mean_gradient(g: Any, m: Any) -> Array:
            dtype = wide_dtype(g)
            β1 = jnp.asarray(b1, dtype)
            return β1 * m.astype(dtype) + (1 - β1) * jnp.asarray(g, dtype)

        def mean_square(h: Any, v: Any) -> Array:
            h, β2 = jnp.asarray(h, v.dtype), jnp.asarray(b2, v.dtype)
            h = h if average is None else average(h)
            return β2 * v + (1 - β2) * h**2

        def rescale(g: Any, m: Any, v: Any) -> Array:
            β1, β2, ε, k = (
                jnp.asarray(x, v.dtype) for x in (b1, b2, eps, hessian_power)
            )
            c1, c2 = (1 - β ** t.astype(v.dtype) for β in (β1, β2))
            # Of the root of 0, its power, and no derivative, which it does not have.
            root = jnp.sqrt(jnp.where(v > 0, v, 1)) / jnp.sqrt(c2)
            power = root if is_plain else root**k
            u = m / c1 / (jnp.where(v > 0, power, 0**k) + ε)
            # A square that overflowed would freeze its entry, with nothing to see.
            u = jnp.where(jnp.isfinite(v), u, jnp.nan)
            return u.astype(jnp.result_type(g))

        m = jax.tree.map(mean_gradient, updates, state.m)
        v = jax.tree.map(mean_square, diag, state.v)
        u = jax.tree.map(rescale, updates, m, v)
        m = jax.tree.map(lambda m, old: m.astype(old.dtype), m, state.m)
        return u, AdaHessianState(t, m, v)

    return optax.GradientTransformationExtraArgs(init, update)


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
    check_non_negative("ok.optim.adahessian", "learning_rate", learning_rate)
    check_non_negative("ok.optim.adahessian", "weight_decay", weight_decay)
    moments = scale_by_adahessian(
        b1, b2, eps, hessian_power, average=average, state_dtype=state_dtype
    )
    step = optax.scale_by_learning_rate(learning_rate)
    if is_zero(weight_decay):
        return optax.chain(moments, step)
    return optax.chain(moments, optax.add_decayed_weights(weight_decay, mask), step)


def _check_average(call: str, average: Average, params: Params) -> None:
    """Raises unless `average` keeps the shape of every leaf."""
    for path, leaf in jtu.tree_leaves_with_path(params):
        wide = jax.ShapeDtypeStruct(jnp.shape(leaf), wide_dtype(leaf))
        got = jax.eval_shape(average, wide)
        if got.shape != wide.shape or got.dtype != wide.dtype:
            raise ValueError(
                f"`{call}` needs an average that keeps shape and dtype, got {got} from "
                f"{wide} at params{jtu.keystr(path)}. Broadcast the mean back, as "
                f"`ok.optim.average_rows` does."
            )
