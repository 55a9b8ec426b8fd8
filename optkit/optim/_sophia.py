"""Sophia: clipped momentum over a lightly averaged Hessian diagonal.

The clipping makes a poor diagonal harmless: where it is too small or negative the
entry takes a sign step. So a rare, noisy estimate will do.
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
    """What Sophia's next step needs; each tree has the shapes of the params.

    Attributes:
        count: steps taken.
        m: mean gradient.
        h: mean Hessian diagonal.
        win_rate: the fraction of entries that the last step did not clip.
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

    Sophia-H takes the diagonal from `ok.value_grad_and_diag` and gamma 0.01, Sophia-G
    from `ok.value_grad_and_gauss_newton_diag` and gamma 0.05. Tune gamma until the win
    rate, `optax.tree.get(state, "win_rate")`, is between 0.1 and 0.5: a larger gamma
    clips less.

    Between refreshes `hessian_diag` is not used, and any tree of the right shapes will
    do. `ok.optim.with_hutchinson` with the same interval skips the work too; so does a
    `jax.lax.cond` on the step around your own estimate.

    This is the paper's Algorithm 3. The authors' code departs: it adds 1e-15 instead
    of the maximum with eps, scales Sophia-G's h by the batch size when it is used,
    which `ok.value_grad_and_gauss_newton_diag` has done, and refreshes after a step.
    Like both, there is no bias correction for Sophia-G; their code has one of m for
    Sophia-H, their paper not. Departs: (1)
    arithmetic in float32 or wider; (2) an entry whose m or h is infinite is NaN, for
    `optax.apply_if_finite` to reject, where clipping would make it a sign step.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean diagonal, in [0, 1), once in K steps.
        gamma: scale of the curvature; positive.
        eps: the least curvature; positive. Where h is not above eps / gamma, as where
            it is negative, the entry takes a sign step.
        update_interval: K >= 1, an integer.
        state_dtype: a floating dtype for m. Default: the leaf's own, at least
            float32. h is at least float32 always.

    Returns:
        A transform whose state is an `ok.optim.SophiaState`: twice the memory of float32
        params. Its `update` needs `hessian_diag=`, a tree like the params. Updates have
        the sign of the gradient, as all `scale_by_*`.

    Raises:
        ValueError: for a decay outside [0, 1), a gamma or eps that is not positive, or
            an interval below 1; in `update`, without `hessian_diag`, or for trees of
            another structure or shape than the params.
        TypeError: for a `state_dtype` that is not floating; in `init`, for leaves that
            are not real; in `update`, for another dtype.

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
    return _scale(check, b1, b2, gamma, eps, update_interval, state_dtype)


def _scale(
    check: Check,
    b1: Any,
    b2: Any,
    gamma: Any,
    eps: Any,
    update_interval: Any,
    state_dtype: Any,
) -> optax.GradientTransformationExtraArgs:
    check.decay(b1=b1, b2=b2)
    check.positive(gamma=gamma, eps=eps)
    check.optional.dtype(state_dtype=state_dtype)
    if not isinstance(update_interval, jax.Array):  # as `optax.inject_hyperparams`'s
        check.count(update_interval=update_interval)

    def rule(
        g: Any, d: Any, s: Any, t: Any, β1: Any, β2: Any, γ: Any, ε: Any
    ) -> tuple[Any, Any]:
        is_due = s.count % jnp.asarray(update_interval, jnp.int32) == 0
        m = β1 * s.m + (1 - β1) * g
        h = jnp.where(is_due, β2 * s.h + (1 - β2) * d, s.h)
        u = jnp.clip(m / jnp.maximum(γ * h, ε), -1, 1)
        return u, s._replace(m=m, h=h)

    return leafwise(
        check,
        rule,
        SophiaState,
        moments={"h": WIDE, "m": stored_in(state_dtype)},
        hyper=(b1, b2, gamma, eps),
        reads="hessian_diag",
        guard=("m", "h"),
        totals={"win_rate": _win_rate},
        accepts=check.real,
    )


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.96,
    b2: Any = 0.99,
    gamma: Any = 0.01,
    eps: Any = 1e-12,
    weight_decay: Any = 0.0,
    *,
    update_interval: Any = 10,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Sophia with decoupled weight decay.

    With u from `ok.optim.scale_by_sophia`, where every departure is numbered, eta the
    learning rate and lambda the weight decay:

        theta <- theta - eta (u + lambda theta)

    Entries of u are at most 1, as in Lion, so learning rates are of that size: the
    authors use a little less than AdamW's, and weight decay 0.2.

    Args:
        learning_rate: a number >= 0 or a schedule.
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean diagonal, in [0, 1), once in `update_interval` steps.
        gamma: scale of the curvature: 0.01 for Sophia-H, 0.05 for Sophia-G.
        eps: the least curvature; positive.
        weight_decay: a number >= 0 or a schedule. At the number 0 the decay is left
            out, and `update` needs no params.
        update_interval: steps from one use of `hessian_diag` to the next.
        mask: optax's mask of the leaves that decay; the others still get their step.
        state_dtype: see `ok.optim.scale_by_sophia`.

    Returns:
        An optax transform whose `update` needs `hessian_diag=`.

    Raises:
        ValueError: for a negative learning rate or weight decay, and as
            `ok.optim.scale_by_sophia`; in `update`, for weight decay without params.
        TypeError: as `ok.optim.scale_by_sophia`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p: jnp.sum(jnp.array([1.0, 50.0]) * (p - 3.0) ** 2)
        >>> tx = ok.optim.sophia(0.2, b1=0.9, b2=0.9, gamma=1.0)
        >>> tx = ok.optim.with_hutchinson(tx, key=jax.random.key(0), update_interval=10)
        >>> @jax.jit
        ... def step(params, state):
        ...     grads = jax.grad(loss)(params)
        ...     updates, state = tx.update(grads, state, params, value_fn=loss)
        ...     return optax.apply_updates(params, updates), state
        >>> params = jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     params, state = step(params, state)
        >>> bool(loss(params) < 1.0)  # from 459.0
        True

    Reference:
        Liu et al. 2023, arXiv:2305.14342.
    """
    check = Check("ok.optim.sophia")
    scale = _scale(check, b1, b2, gamma, eps, update_interval, state_dtype)
    return descent(check, scale, learning_rate, weight_decay, mask)


def _win_rate(u: Params) -> Float[Array, ""]:
    """The fraction of entries below 1; of no entries, 0."""
    leaves = [x for x in jax.tree.leaves(u) if x.size]
    size = sum(x.size for x in leaves)
    wins = [
        jnp.mean(jnp.abs(x) < 1, dtype=jnp.float32) * (x.size / size) for x in leaves
    ]
    return sum(wins, jnp.zeros([], jnp.float32))
