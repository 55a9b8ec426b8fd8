"""Sophia: clipped momentum over an occasionally updated mean of the Hessian diagonal.

Clipping makes a poor diagonal harmless: where it is too small or negative, the entry
takes a sign step. So a rare, noisy estimate is enough.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule
from ._base import WIDE, descent, leafwise, stored_in


class SophiaState(NamedTuple):
    """Steps taken, mean gradient m, mean Hessian diagonal h, and the win rate.

    The win rate is the fraction of entries that the last step did not clip.
    """

    count: Int[Array, ""]
    m: Params
    h: Params
    win_rate: Float[Array, ""]


def scale_by_sophia(
    b1: Any = 0.96,
    b2: Any = 0.99,
    gamma: Any = 0.01,
    eps: Any = 1e-12,
    *,
    update_interval: Any = 10,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by Sophia's clipped ratio of momentum to curvature.

    With g the gradient, d the diagonal that `update` receives as `hessian_diag=`, and
    K the update interval:

        m <- b1 m + (1 - b1) g
        h <- b2 h + (1 - b2) d             at steps 0, K, 2K, ..., before the step
        u  = clip(m / max(gamma h, eps), -1, 1)

    Sophia-H takes the diagonal from `ok.value_grad_and_diag`, with gamma 0.01; Sophia-G
    takes it from `ok.value_grad_and_gauss_newton_diag`, with gamma 0.05. Tune gamma
    until the win rate, `optax.tree.get(state, "win_rate")`, is between 0.1 and 0.5: a
    larger gamma clips less.

    Between refreshes `hessian_diag` is not used: any pytree like the params will do. To
    skip its computation, use `ok.optim.with_hutchinson` with the same interval, or put
    a `jax.lax.cond` on the step around your own estimate.

    This is the paper's Algorithm 3, without bias correction. The authors' code adds
    1e-15 to gamma h instead of taking the maximum with eps; scales the h of Sophia-G by
    the batch size in each step, which `ok.value_grad_and_gauss_newton_diag` has already
    done; refreshes after the step; corrects the bias of m in Sophia-H; and clips the
    sampled gradient of Sophia-G, which `max_norm=` of that function does. Departs: (1)
    arithmetic is in float32 or wider; (2) an entry whose m or h is infinite is NaN, not
    a sign step.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean diagonal, in [0, 1), applied once in K steps.
        gamma: the scale of the curvature, > 0.
        eps: the least curvature, > 0. Entries with h <= eps / gamma take a sign step.
        update_interval: K >= 1, an integer.
        state_dtype: a floating dtype for m. Default: that of the leaf, at least
            float32. h is always at least float32.

    Returns:
        A transform with an `ok.optim.SophiaState`, twice as large as float32 params.
        Its `update` needs `hessian_diag=`, a pytree like the params.

    Raises:
        ValueError: for hyperparameters out of range, or trees missing or mismatched.
        TypeError: for leaves that are not real or a `state_dtype` that is not floating.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
        >>> grads, diag = jnp.array([3.0, 3.0, 3.0]), jnp.array([6.0, 1.0, -6.0])
        >>> updates, state = tx.update(grads, tx.init(grads), hessian_diag=diag)
        >>> print(updates, state.win_rate)
        [0.5 1.  1. ] 0.33333334

    Reference:
        Liu et al. 2023, arXiv:2305.14342, Algorithm 3, and its official code.
    """
    check = Check("ok.optim.scale_by_sophia")
    return _scale(check, (b1, b2, gamma, eps), update_interval, state_dtype)


def _scale(
    check: Check, hyper: tuple[Any, ...], update_interval: Any, state_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    b1, b2, gamma, eps = hyper
    check.decay(b1=b1, b2=b2)
    check.positive(gamma=gamma, eps=eps)
    check.optional.dtype(state_dtype=state_dtype)
    if not isinstance(update_interval, jax.Array):  # an array if it is injected
        check.count(update_interval=update_interval)

    def rule(
        g: Any, d: Any, s: Any, t: Any, b1: Any, b2: Any, gamma: Any, eps: Any
    ) -> Any:
        is_due = s.count % jnp.asarray(update_interval, jnp.int32) == 0
        m = b1 * s.m + (1 - b1) * g
        h = jnp.where(is_due, b2 * s.h + (1 - b2) * d, s.h)
        u = jnp.clip(m / jnp.maximum(gamma * h, eps), -1, 1)
        return u, s._replace(m=m, h=h)

    return leafwise(
        check,
        rule,
        SophiaState,
        moments={"h": WIDE, "m": stored_in(state_dtype)},
        decays=(b1, b2),
        hyper=(gamma, eps),
        reads=("hessian_diag",),
        guard=("m", "h"),
        statistics={"win_rate": _win_rate},
        check_params=check.real,
    )


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.96,
    b2: Any = 0.99,
    gamma: Any = 0.01,
    eps: Any = 1e-12,
    weight_decay: Any = None,
    *,
    update_interval: Any = 10,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia (Liu et al. 2023, arXiv:2305.14342) with decoupled weight decay.

    With u from `ok.optim.scale_by_sophia`, which numbers every departure, η the
    learning rate and λ the weight decay:

        θ <- θ - η (u + λ θ)

    No entry of u exceeds 1, as in Lion. The authors use learning rates a little below
    AdamW's, and weight decay 0.2.

    b1, b2, `gamma`, `eps`, `update_interval` and `state_dtype` are those of
    `ok.optim.scale_by_sophia`; the learning rate, the weight decay and the mask are
    those of `ok.optim.adan`.

    Returns:
        An optax transform whose `update` needs `hessian_diag=`.

    Example:
        >>> import functools, jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p: jnp.sum(jnp.array([1.0, 50.0]) * (p - 3.0) ** 2)
        >>> tx = ok.optim.sophia(0.2, b1=0.9, b2=0.9, gamma=1.0)
        >>> tx = ok.optim.with_hutchinson(tx, key=jax.random.key(0), update_interval=10)
        >>> update = jax.jit(functools.partial(tx.update, value_fn=loss))
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     updates, state = update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 1.0)  # from 459.0
        True
    """
    check = Check("ok.optim.sophia")
    scale = _scale(check, (b1, b2, gamma, eps), update_interval, state_dtype)
    return descent(check, [scale], learning_rate, weight_decay, mask)


def _win_rate(u: Params) -> Float[Array, ""]:
    """The fraction of entries below 1 in size; 0 if there are none."""
    leaves = [x for x in jax.tree.leaves(u) if x.size]
    size = sum(x.size for x in leaves)
    wins = [jnp.mean(jnp.abs(x) < 1, dtype="f4") * (x.size / size) for x in leaves]
    return sum(wins, jnp.zeros([], jnp.float32))
