"""M-FAC: natural gradients from a sliding window of the last gradients.

The curvature is the mean of g gᵀ over the window, G its rows. Preconditioning the
newest row needs no product with a general vector, and so none of the cancellation that
Woodbury's identity has in float32: a combination of the rows is enough.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._check import Check
from .._inverse.columns import small_dtype
from .._types import MaskOrFn, Params, ScalarOrSchedule
from .._vector import cast_like, structure_of
from ._base import WIDE, check_gradients, descent, is_zero, leafwise
from ._mfac_solve import write_and_solve


class MfacState(NamedTuple):
    """What M-FAC's next step needs.

    Attributes:
        pointer: the row of the window that the next gradient goes to.
        num_filled: how many rows hold a gradient, at most m; the others are zero.
        window: the last gradients as they are stored, each leaf with a leading axis m.
        gram: the dots of all pairs of rows, in float64 where JAX has it, else float32.
    """

    pointer: Int[Array, ""]
    num_filled: Int[Array, ""]
    window: Params
    gram: Float[Array, "m m"]


class MeanState(NamedTuple):
    """The decaying mean of the updates, not corrected for its start at zero."""

    count: Int[Array, ""]
    mean: Params


def scale_by_mfac(
    window: int, damping: Any, *, count_filled: bool = False, window_dtype: Any = None
) -> optax.GradientTransformation:
    """Preconditions the gradient by the damped Fisher matrix of the last m gradients.

    With G the m x d window after the new gradient g is written to its row i, rows that
    no gradient has reached zero, and K = G Gᵀ kept up to date one row a step:

        u = (λI + GᵀG/m)⁻¹ g = m Gᵀ(mλI + K)⁻¹ eᵢ

    which divides nothing by λ. The window is read twice a step, for the new row G g of
    K and for Gᵀc, and nothing of its size is written but the row: 4 m d operations and
    a Cholesky factor of m x m. Memory is m times the params'; there is no limit on m.

    The first step is g / (λ + ‖g‖²/m), far longer than the gradient for a small λ:
    warm the learning rate up, or pass `count_filled=True`, which makes it shorter.
    λ has the units of ‖g‖²: half the loss with the same λ is four times the damping.

    If gradients nearly repeat and λ is tiny, rounding in K would show in u. A bound on
    that is read off the Cholesky factor in each step. Where it exceeds a tenth of half
    the digits (3e-5 in float32), the step is done again by the eigenvectors of K and
    refined by products with the window, 5 to 15 slower passes. Under `jax.vmap` the
    whole batch does so in the steps in which one member has to, and in no other. Below
    λ = 1e-7 ‖g‖² with such gradients, the rounding of float32 gradients themselves is
    what F⁻¹g depends on.

    A gradient that is not finite makes every update NaN until it leaves the window,
    m steps later: guard the whole with `optax.apply_if_finite`.

    Departs from the authors' code: (1) a Gram matrix and push-through, where theirs is
    an elimination in m sequential steps and a difference divided by λ; (2) parameters
    that are zero at the start are not left out.

    Args:
        window: m, how many gradients to keep, at least 1. The authors train with 512
            and 1024. With `optax.inject_hyperparams` it is one of the `static_args`.
        damping: λ > 0, a number or a scalar array. The authors use 1e-5 and 1e-6.
        count_filled: divide by the number of gradients so far, up to m, rather than by
            m. The authors divide by m. After m steps there is no difference.
        window_dtype: a floating dtype for the window. Default: each leaf's own.
            jnp.bfloat16 halves the memory of float32. The new row of K is computed
            from the stored, rounded gradient, so K belongs to the window exactly;
            products are in float32, from blocks of rows that are cast one at a time.

    Returns:
        A transform whose state is an `ok.optim.MfacState`. Updates have the sign of the
        gradient, as all `scale_by_*`. A sharded leaf keeps its sharding in the window;
        devices exchange m numbers a step.

    Raises:
        ValueError: for a window below 1 or a damping that is not positive and finite;
            in `update`, for gradients of another structure or shape than the params.
        TypeError: for a `window_dtype` that is not floating; in `init`, for leaves that
            are not real floating; in `update`, for gradients of another dtype than the
            window, unless `window_dtype` is given.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.scale_by_mfac(window=4, damping=0.5)
        >>> params = jnp.zeros(2)
        >>> updates, state = tx.update(jnp.array([3.0, 0.0]), tx.init(params))
        >>> [round(u, 3) for u in updates.tolist()]  # 3 / (0.5 + 9 / 4)
        [1.091, 0.0]

    Reference:
        Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356, section 3.2.
    """
    check = Check("ok.optim.scale_by_mfac")
    return _scale(check, window, damping, count_filled, window_dtype)


def _scale(
    check: Check, window: int, damping: Any, count_filled: bool, window_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    check.count(window=window)
    check.positive(damping=damping)
    check.optional.dtype(window_dtype=window_dtype)

    def init(params: Params) -> MfacState:
        check.real(params=params)

        def rows(p: Any) -> Array:
            zeros = jnp.zeros_like(p, window_dtype or jnp.result_type(p))
            return jnp.broadcast_to(zeros, (window, *zeros.shape))

        return MfacState(
            pointer=jnp.zeros([], jnp.int32),
            num_filled=jnp.zeros([], jnp.int32),
            window=jax.tree.map(rows, params),
            gram=jnp.zeros((window, window), small_dtype()),
        )

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, MfacState]:
        del params, extra
        check_gradients(check, updates, structure_of(state.window, 1), _row_dtype)
        num_filled = jnp.minimum(state.num_filled + 1, window)
        count = num_filled if count_filled else jnp.asarray(window, jnp.int32)
        u, rows, gram = write_and_solve(
            state.window,
            cast_like(updates, state.window),
            state.gram,
            state.pointer,
            count,
            jnp.asarray(damping, state.gram.dtype),
        )
        pointer = (state.pointer + 1) % window
        state = MfacState(pointer, num_filled, rows, gram)
        return cast_like(u, updates), state

    def _row_dtype(leaf: Any) -> Any:
        is_real = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        return (
            jnp.dtype(window_dtype)
            if window_dtype and is_real
            else jnp.result_type(leaf)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def mfac(
    learning_rate: ScalarOrSchedule,
    window: int,
    damping: Any,
    momentum: Any = 0.0,
    weight_decay: Any = 0.0,
    *,
    count_filled: bool = False,
    window_dtype: Any = None,
    mask: MaskOrFn = None,
) -> optax.GradientTransformation:
    """M-FAC with weight decay and momentum, placed as its authors place them.

    With eta the learning rate, beta the momentum, and F the damped Fisher matrix of
    `ok.optim.scale_by_mfac`, where every departure is numbered:

        g     <- grad + weight_decay theta            coupled: it enters the window
        v     <- beta v + (1 - beta) F⁻¹g             from v = 0, not corrected
        theta <- theta - eta v

    For momentum that is a sum rather than a mean, chain `ok.optim.scale_by_mfac` and
    `optax.trace`; for decoupled decay, `optax.add_decayed_weights` after it.

    Args:
        learning_rate: a number >= 0 or a schedule. The authors' default is 1e-3.
        window: m, how many gradients to keep. The authors' default is 1024.
        damping: λ > 0. The authors' default is 1e-5.
        momentum: decay of the mean update, in [0, 1). At the number 0 it is left out.
        weight_decay: a number >= 0 or a schedule. At the number 0 it is left out, and
            `update` needs no params.
        count_filled: see `ok.optim.scale_by_mfac`.
        window_dtype: see `ok.optim.scale_by_mfac`.
        mask: optax's mask of the leaves that decay.

    Returns:
        An optax transform; `optax.apply_updates` adds what it returns.

    Raises:
        ValueError: for a negative learning rate or weight decay, a momentum outside
            [0, 1), and as `ok.optim.scale_by_mfac`; in `update`, for weight decay without
            params.
        TypeError: as `ok.optim.scale_by_mfac`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> tx = ok.optim.mfac(1.0, window=8, damping=0.1)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> loss = lambda p: jnp.sum(jnp.array([1.0, 10.0]) * p**2)
        >>> for _ in range(50):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 10.0)  # from 41.0
        True

    Reference:
        Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356, and its official code.
    """
    check = Check("ok.optim.mfac")
    check.non_negative(weight_decay=weight_decay)
    links = [_scale(check, window, damping, count_filled, window_dtype)]
    if not is_zero(weight_decay):
        links.insert(0, optax.add_decayed_weights(weight_decay, mask))
    if not is_zero(momentum):
        links.append(_mean(check, momentum))
    return descent(check, optax.chain(*links), learning_rate)


def _mean(check: Check, decay: Any) -> optax.GradientTransformationExtraArgs:
    """The mean v <- β v + (1 - β) u, in float32 or wider, unlike `optax.ema`."""
    check.decay(momentum=decay)

    def rule(u: Any, s: Any, t: Any, β: Any) -> Any:
        v = β * s.mean + (1 - β) * u
        return v, s._replace(mean=v)

    moments = {"mean": WIDE}
    return leafwise(check, rule, MeanState, moments=moments, hyper=(decay,))
