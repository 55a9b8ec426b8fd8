"""Adan: adaptive Nesterov momentum without an extrapolated gradient.

Nesterov's method evaluates the gradient at a point ahead of the iterate. Adan estimates
that gradient from the last change, d = g - g_prev, so a step costs one gradient.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule
from ._base import (
    OWN,
    REAL,
    descent,
    leafwise,
    safe_sqrt,
    scale_by_learning_rate,
    stored_in,
)
from ._decay import shrink

State = TypeVar("State")


class AdanState(NamedTuple):
    """The steps since the last restart, the means m, v and n, and the last gradient."""

    count: Int[Array, ""]
    m: Params
    v: Params
    n: Params
    prev_grad: Params


def scale_by_adan(
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    *,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Rescales updates by Adan's Nesterov moments.

    b1, b2, b3 decay the old value; the paper's betas are 1 - b.
    With g the gradient, d = g - g_prev (0 at the first step), t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) d
        n <- b3 n + (1 - b3) (g + b2 d)^2
        u  = (m / (1 - b1^t) + b2 v / (1 - b2^t)) / (sqrt(n) / sqrt(1 - b3^t) + eps)

    This is the authors' code, which departs from the paper's Algorithm 1:

    1. the paper has no bias correction and starts at m = g, n = g^2, and at the second
       step v = d; the code starts at zero and divides by 1 - b^t. Only the first step
       is the same;
    2. the paper restarts once the iterates have moved far enough; the code restarts on
       request: `ok.optim.restart_adan`;
    3. the code can clip the global norm first; here `optax.clip_by_global_norm` does so
       earlier in the chain. In both, g_prev is the clipped gradient.

    Departs from the code: (4) a complex leaf is scaled by its modulus, with
    |g + b2 d|^2 in n, so n is real; (5) arithmetic and state are in float32 or wider;
    (6) an entry whose square overflows is NaN, not zero; (7) the code clips by
    c / (|g| + eps), optax by c / |g|.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean gradient difference, in [0, 1).
        b3: decay of the mean square, in [0, 1).
        eps: added outside the root, in units of the gradient, >= 0.
        state_dtype: a floating dtype for m and v. Default: that of the leaf, at least
            float32. bfloat16 saves a quarter of the state, but such an average stops
            moving near its goal (at decay 0.98 within 10 %). n is always at least
            float32; g_prev always has the dtype of the leaf, in which it is exact.

    Returns:
        A transform with an `ok.optim.AdanState`, four times as large as float32 params.

    Raises:
        ValueError: for hyperparameters out of range, or gradients unlike the params.
        TypeError: for integer leaves, or a `state_dtype` that is not floating.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> scale = ok.optim.scale_by_adan()
        >>> tx = optax.chain(scale, optax.scale_by_learning_rate(0.1))
        >>> grads = jnp.array([2.0, -4.0])
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> updates.round(3)  # the first step is the learning rate, against the sign
        Array([-0.1,  0.1], dtype=float32)

    Reference:
        Xie et al. 2022, arXiv:2208.06677v4, Algorithm 1, and its official code.
    """
    check = Check("ok.optim.scale_by_adan")
    return _scale(check, (b1, b2, b3, eps), state_dtype)


def _scale(
    check: Check, hyper: tuple[Any, ...], state_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    b1, b2, b3, eps = hyper
    check.decay(b1=b1, b2=b2, b3=b3)
    check.non_negative(eps=eps)
    check.optional.dtype(state_dtype=state_dtype)

    def rule(g: Any, s: Any, t: Any, b1: Any, b2: Any, b3: Any, eps: Any) -> Any:
        d = jnp.where(t == 1, 0, g - s.prev_grad)
        m = b1 * s.m + (1 - b1) * g
        v = b2 * s.v + (1 - b2) * d
        n = b3 * s.n + (1 - b3) * _abs_sq(g + b2 * d)
        # Scalars are divided first: one division per entry instead of four.
        c1, c2, c3 = 1 / (1 - b1**t), b2 / (1 - b2**t), 1 / jnp.sqrt(1 - b3**t)
        u = (c1 * m + c2 * v) / (c3 * safe_sqrt(n) + eps)
        return u, s._replace(m=m, v=v, n=n, prev_grad=g)

    mean = stored_in(state_dtype)
    return leafwise(
        check,
        rule,
        AdanState,
        moments={"prev_grad": OWN, "m": mean, "v": mean, "n": REAL},
        decays=(b1, b2, b3),
        hyper=(eps,),
        guard=("n",),
    )


def adan(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = None,
    *,
    proximal: bool = True,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan (Xie et al. 2022, arXiv:2208.06677v4) with weight decay.

    b1, b2, b3 decay the old value; the paper's betas are 1 - b. With u from
    `ok.optim.scale_by_adan`, which numbers every departure, η the learning rate and λ
    the weight decay, both read at the same step:

        θ <- (θ - η u) / (1 + η λ)        proximal=True, the default
        θ <- (1 - η λ) θ - η u            proximal=False, as AdamW

    The authors advise a peak learning rate 5 to 10 times AdamW's and weight decay 0.02.
    Tune b3 first.

    b1, b2, b3, `eps` and `state_dtype` are those of `ok.optim.scale_by_adan`. The
    learning rate and the weight decay are numbers >= 0 or schedules. Without weight
    decay (None or 0), `update` needs no params. `mask` is optax's mask of the leaves
    that decay; the others still take their step.

    Returns:
        An optax transform; `optax.apply_updates` adds its updates to the params.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss, params = lambda p: jnp.sum((p - 3.0) ** 2), jnp.array([1.0, -2.0])
        >>> tx = ok.optim.adan(0.1, weight_decay=0.02)
        >>> state = tx.init(params)
        >>> for _ in range(50):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 1.0)  # from 29.0
        True
    """
    check = Check("ok.optim.adan")
    scale = _scale(check, (b1, b2, b3, eps), state_dtype)
    if not proximal or weight_decay is None:
        return descent(check, [scale], learning_rate, weight_decay, mask)
    last = shrink(check, learning_rate, weight_decay, mask)
    return optax.chain(scale, scale_by_learning_rate(learning_rate), last)


def restart_adan(state: State) -> State:
    """Returns an optimizer state with every Adan's moments and step count at zero.

    This is `restart_opt` of the authors' code, which they call once after warm-up, then
    at fixed epochs. The next step is a first step, with d = 0. Learning-rate schedules
    keep their counts. It is pure, so it works under `jax.jit`.

    Raises:
        TypeError: if there is no `ok.optim.AdanState` in `state`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.adan(0.1)
        >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
        >>> int(state[0].count), int(ok.optim.restart_adan(state)[0].count)
        (1, 0)
    """

    def is_adan(node: PyTree) -> bool:
        return isinstance(node, AdanState)

    def restart(node: PyTree) -> PyTree:
        if not is_adan(node):
            return node
        return jax.tree.map(jnp.zeros_like, node)._replace(prev_grad=node.prev_grad)

    has_adan = any(map(is_adan, jax.tree.leaves(state, is_leaf=is_adan)))
    text = f"needs a state with an `AdanState` in it, got `{type(state).__name__}`."
    Check("ok.optim.restart_adan").that(has_adan, text, TypeError)
    return jax.tree.map(restart, state, is_leaf=is_adan)


def _abs_sq(x: Array) -> Array:
    """|x|^2, real, without the root that `abs` takes of a complex number."""
    return jnp.real(x * jnp.conj(x))
