"""M-FAC: natural gradients from a sliding window of the last gradients.

The curvature is the mean of g gᵀ over the window. The preconditioned newest row is a
combination of the rows, which avoids the cancellation of Woodbury's identity in
float32.
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
from ._base import WIDE, add_decay, check_gradients, descent, leafwise, number_at
from ._mfac_solve import write_and_solve


class MfacState(NamedTuple):
    """The last m gradients, and the dot products of all pairs.

    Leaves of `window` have a leading axis m. The next gradient goes to row `pointer`;
    all but `num_filled` rows are zero. `gram` is float64 if JAX has it, else float32.
    """

    pointer: Int[Array, ""]
    num_filled: Int[Array, ""]
    window: Params
    gram: Float[Array, "m m"]


class MeanState(NamedTuple):
    """The decaying mean of the updates, from zero and without bias correction."""

    count: Int[Array, ""]
    mean: Params


def scale_by_mfac(
    window: int, damping: Any, *, count_filled: bool = False, window_dtype: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Preconditions the gradient by the damped Fisher matrix of the last m gradients.

    With G the m x d window after the new gradient g is written to its row i (rows that
    have no gradient yet are zero), and K = G Gᵀ, of which each step updates one row:

        u = (λI + GᵀG/m)⁻¹ g = m Gᵀ(mλI + K)⁻¹ eᵢ

    Nothing is divided by λ. A step reads the window twice, for the new row G g of K and
    for Gᵀc, and writes only its new row: 4 m d operations and an m x m Cholesky factor.
    Memory is m times that of the params; there is no limit on m.

    The first step is g / (λ + ‖g‖²/m), far longer than the gradient if λ is small: warm
    up the learning rate, or shorten the step with `count_filled=True`. λ has the units
    of ‖g‖²: if the loss is halved, the same λ damps four times as much.

    If gradients nearly repeat and λ is tiny, rounding in K would show in u. Where a
    bound on that exceeds 3e-5 in float32, the step is repeated with the eigenvectors of
    K and refined, which takes 5 to 15 slower passes. With such gradients and λ below
    1e-7 ‖g‖², u depends on the rounding of the float32 gradients themselves.

    A gradient that is not finite makes every update NaN until it leaves the window, m
    steps later: wrap the whole optimizer in `optax.apply_if_finite`.

    Departs from the authors' code: (1) it uses the Gram matrix and the push-through
    identity, not an elimination in m sequential steps and a difference divided by λ;
    (2) parameters that start at zero are not left out.

    Args:
        window: m, how many gradients to keep, at least 1. The authors train with 512
            and 1024. With `optax.inject_hyperparams`, name it in `static_args`.
        damping: λ > 0, a number or a scalar array. The authors use 1e-5 and 1e-6.
        count_filled: whether to divide by the number of gradients so far, up to m. The
            authors divide by m from the start.
        window_dtype: a floating dtype for the window. Default: that of each leaf.
            jnp.bfloat16 halves the memory of float32. The row of K is computed from the
            rounded gradient, so K is exactly that of the window. Products are in
            float32, and cast one block of rows at a time.

    Returns:
        A transform with an `ok.optim.MfacState`. The window keeps the sharding of each
        leaf; devices exchange m numbers per step.

    Raises:
        ValueError: for hyperparameters out of range, or gradients unlike the params.
        TypeError: for leaves that are not real, or a `window_dtype` that is not
            floating; in `update`, for gradients of another dtype than the window.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.scale_by_mfac(window=4, damping=0.5)
        >>> updates, state = tx.update(jnp.array([3.0, 0.0]), tx.init(jnp.zeros(2)))
        >>> [round(u, 3) for u in updates.tolist()]  # 3 / (0.5 + 9 / 4)
        [1.091, 0.0]

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, section 3.2, and its official code.
    """
    check = Check("ok.optim.scale_by_mfac")
    return _scale(check, window, damping, count_filled, window_dtype)


def _scale(
    check: Check, window: int, damping: Any, count_filled: bool, window_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    check.count(window=window)
    check.positive(damping=damping)
    check.wide(damping=damping)
    check.optional.dtype(window_dtype=window_dtype)

    def init(params: Params) -> MfacState:
        check.real(params=params)

        def rows(p: Any) -> Array:
            zeros = jnp.zeros_like(p, window_dtype or jnp.result_type(p))
            return jnp.broadcast_to(zeros, (window, *zeros.shape))

        pointer, num_filled = jnp.zeros([], jnp.int32), jnp.zeros([], jnp.int32)
        gram = jnp.zeros((window, window), small_dtype())
        return MfacState(pointer, num_filled, jax.tree.map(rows, params), gram)

    def row_dtype(leaf: Any) -> Any:
        dtype = jnp.result_type(leaf)
        is_real = jnp.issubdtype(dtype, jnp.floating)
        return jnp.dtype(window_dtype or dtype) if is_real else dtype

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, MfacState]:
        del params, extra
        check_gradients(check, updates, structure_of(state.window, 1), row_dtype)
        num_filled = jnp.minimum(state.num_filled + 1, window)
        n = num_filled if count_filled else jnp.asarray(window, jnp.int32)
        g, i = cast_like(updates, state.window), state.pointer
        λ = jnp.asarray(number_at(damping), state.gram.dtype)
        u, rows, gram = write_and_solve(state.window, g, state.gram, i, n, λ)
        state = MfacState((i + 1) % window, num_filled, rows, gram)
        return cast_like(u, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def mfac(
    learning_rate: ScalarOrSchedule,
    window: int,
    damping: Any,
    momentum: Any = None,
    weight_decay: Any = None,
    *,
    count_filled: bool = False,
    window_dtype: Any = None,
    mask: MaskOrFn = None,
) -> optax.GradientTransformationExtraArgs:
    """M-FAC (Frantar et al. 2021, arXiv:2107.03356) with weight decay and momentum.

    As in the authors' code, with η the learning rate, β the momentum, λ the weight
    decay, and F the damped Fisher matrix of `ok.optim.scale_by_mfac`:

        g <- gradient + λ θ                 coupled: it enters the window
        v <- β v + (1 - β) F⁻¹g             from v = 0, not corrected
        θ <- θ - η v

    For momentum that is a sum, not a mean, chain `ok.optim.scale_by_mfac` and
    `optax.trace`; for decoupled decay, chain `optax.add_decayed_weights` after it.

    The authors' defaults are a learning rate of 1e-3, a window of 1024 and a damping of
    1e-5. `momentum` is in [0, 1); without it (None), v is F⁻¹g. `window`, `damping`,
    `count_filled` and `window_dtype` are those of `ok.optim.scale_by_mfac`; the
    learning rate, the weight decay and the mask are those of `ok.optim.adan`.

    Returns:
        An optax transform; `optax.apply_updates` adds its updates to the params.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p: p[0] ** 2 + 10.0 * p[1] ** 2
        >>> params, tx = jnp.array([1.0, -2.0]), ok.optim.mfac(1.0, 8, damping=0.1)
        >>> state = tx.init(params)
        >>> for _ in range(50):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 10.0)  # from 41.0
        True
    """
    check = Check("ok.optim.mfac")
    check.optional.decay(momentum=momentum)
    check.optional.non_negative(weight_decay=weight_decay)
    links = [_scale(check, window, damping, count_filled, window_dtype)]
    if weight_decay is not None:
        links = [add_decay(weight_decay, mask), *links]
    if momentum is not None:
        links.append(_mean(check, momentum))
    return descent(check, links, learning_rate)


def _mean(check: Check, momentum: Any) -> optax.GradientTransformationExtraArgs:
    """The mean v <- β v + (1 - β) u, in float32 or wider, unlike `optax.ema`."""

    def rule(u: Any, s: Any, t: Any, β: Any) -> Any:
        v = β * s.mean + (1 - β) * u
        return v, s._replace(mean=v)

    moments, decays = {"mean": WIDE}, (momentum,)
    return leafwise(check, rule, MeanState, moments=moments, decays=decays)
