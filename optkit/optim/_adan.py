"""Adan: adaptive Nesterov momentum without an extrapolated gradient.

Nesterov's method wants the gradient at a point it has not reached yet. Adan estimates
it from the change of the gradient, d = g - g_prev, so a step costs one gradient.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule
from ._base import OWN, REAL, descent, is_zero, leafwise, safe_sqrt, stored_in
from ._decay import proximal_weight_decay

State = TypeVar("State")


class AdanState(NamedTuple):
    """What Adan's next step needs; each tree has the shapes of the params.

    Attributes:
        count: steps taken since the start, or the last restart.
        m: mean gradient.
        v: mean gradient difference.
        n: mean square of the look-ahead gradient, real.
        prev_grad: the last gradient as it came, in the params' own dtype.
    """

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
    """Rescales updates by Adan's Nesterov moments, as the authors' code does.

    b1, b2, b3 are decays of the old value; the paper's betas are 1 - b.
    With g the gradient, d = g - g_prev (0 at the first step), t = 1, 2, ...:

        m <- b1 m + (1 - b1) g
        v <- b2 v + (1 - b2) d
        n <- b3 n + (1 - b3) (g + b2 d)^2
        u  = (m / (1 - b1^t) + b2 v / (1 - b2^t)) / (sqrt(n) / sqrt(1 - b3^t) + eps)

    The paper's Algorithm 1 differs from the authors' code, which this follows:

    1. the paper has no bias correction and starts at m = g, n = g^2, and at the second
       step v = d; the code starts at zero and divides by 1 - b^t. The first step is
       the same, later ones are not;
    2. the paper restarts when the iterates have moved far enough; the code restarts
       when it is told to: `ok.optim.restart_adan`;
    3. the code can clip the global norm first; here that is a link of the chain,
       `optax.clip_by_global_norm`, and g_prev is the clipped gradient in both.

    Beyond the authors' code: (4) a complex leaf is scaled by its modulus, with
    |g + b2 d|^2 in n, so n is real; (5) arithmetic and state are in float32 or
    wider whatever the leaf, updates come back in the leaf's dtype; (6) an entry whose
    square overflows is NaN, for `optax.apply_if_finite` to reject, and not zero.

    Args:
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean gradient difference, in [0, 1).
        b3: decay of the mean square, in [0, 1).
        eps: added outside the root, in units of the gradient; not negative.
        state_dtype: a floating dtype for m and v. Default: the leaf's own, at least
            float32. bfloat16 saves a quarter of the state, but such an average
            stops moving near its goal (at decay 0.98 within 10 %). n is at least
            float32 always, and g_prev in the leaf's dtype always: it is exact there.

    Returns:
        A transform whose state is an `ok.optim.AdanState`: four times the memory of
        float32 params. Updates have the sign of the gradient, as all `scale_by_*`.

    Raises:
        ValueError: for a decay outside [0, 1), a negative eps; in `update`, for
            gradients of another structure or shape than the params given to `init`.
        TypeError: for a `state_dtype` that is not floating; in `init`, for integer
            leaves; in `update`, for gradients of another dtype than the params.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> tx = optax.chain(ok.optim.scale_by_adan(), optax.scale_by_learning_rate(0.1))
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> grads = jax.grad(lambda p: jnp.sum(p**2))(params)
        >>> updates, state = tx.update(grads, state)
        >>> updates.round(3)  # the first step is the learning rate, against the sign
        Array([-0.1,  0.1], dtype=float32)

    Reference:
        Xie et al. 2022, arXiv:2208.06677v4, Algorithm 1, and its official code.
    """
    check = Check("ok.optim.scale_by_adan")
    return _scale(check, b1, b2, b3, eps, state_dtype)


def _scale(
    check: Check, b1: Any, b2: Any, b3: Any, eps: Any, state_dtype: Any
) -> optax.GradientTransformationExtraArgs:
    check.decay(b1=b1, b2=b2, b3=b3)
    check.non_negative(eps=eps)
    check.optional.dtype(state_dtype=state_dtype)

    def rule(g: Any, s: Any, t: Any, β1: Any, β2: Any, β3: Any, ε: Any) -> Any:
        d = jnp.where(t == 1, 0, g - s.prev_grad)
        m = β1 * s.m + (1 - β1) * g
        v = β2 * s.v + (1 - β2) * d
        n = β3 * s.n + (1 - β3) * _abs_sq(g + β2 * d)
        # The scalars are divided first: one division an entry instead of four.
        a1, a2, a3 = 1 / (1 - β1**t), β2 / (1 - β2**t), 1 / jnp.sqrt(1 - β3**t)
        u = (a1 * m + a2 * v) / (a3 * safe_sqrt(n) + ε)
        return u, s._replace(m=m, v=v, n=n, prev_grad=g)

    moment = stored_in(state_dtype)
    return leafwise(
        check,
        rule,
        AdanState,
        moments={"prev_grad": OWN, "m": moment, "v": moment, "n": REAL},
        hyper=(b1, b2, b3, eps),
        guard=("n",),
    )


def adan(
    learning_rate: ScalarOrSchedule,
    b1: Any = 0.98,
    b2: Any = 0.92,
    b3: Any = 0.99,
    eps: Any = 1e-8,
    weight_decay: Any = 0.0,
    *,
    proximal: bool = True,
    mask: MaskOrFn = None,
    state_dtype: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Adan with weight decay, as its authors run it.

    b1, b2, b3 are decays of the old value; the paper's betas are 1 - b.
    With u from `ok.optim.scale_by_adan`, where every departure is numbered,
    eta the learning rate and lambda the weight decay:

        theta <- (theta - eta u) / (1 + eta lambda)         proximal=True, the default
        theta <- (1 - eta lambda) theta - eta u             proximal=False, as AdamW

    Decay and step read the same value of a schedule. The authors advise a peak
    learning rate 5 to 10 times AdamW's and weight decay 0.02; tune b3 first.

    Args:
        learning_rate: a number >= 0 or a schedule.
        b1: decay of the mean gradient, in [0, 1).
        b2: decay of the mean gradient difference, in [0, 1).
        b3: decay of the mean square, in [0, 1).
        eps: added outside the root; not negative.
        weight_decay: a number >= 0 or a schedule. At the number 0 the decay is left
            out, and `update` needs no params.
        proximal: which of the two forms of weight decay.
        mask: optax's mask of the leaves that decay; the others still get their step.
        state_dtype: see `ok.optim.scale_by_adan`.

    Returns:
        An optax transform; `optax.apply_updates` adds what it returns.

    Raises:
        ValueError: for a negative learning rate or weight decay, and as
            `ok.optim.scale_by_adan`; in `update`, for weight decay without params.
        TypeError: as `ok.optim.scale_by_adan`.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> tx = ok.optim.adan(0.1, weight_decay=0.02)
        >>> params = jnp.array([1.0, -2.0])
        >>> state = tx.init(params)
        >>> loss = lambda p: jnp.sum((p - 3.0) ** 2)
        >>> for _ in range(50):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> bool(loss(params) < 1.0)  # from 29.0
        True

    Reference:
        Xie et al. 2022, arXiv:2208.06677v4, and its official code.
    """
    check = Check("ok.optim.adan")
    scale = _scale(check, b1, b2, b3, eps, state_dtype)
    if not proximal or is_zero(weight_decay):
        return descent(check, scale, learning_rate, weight_decay, mask)
    shrink = proximal_weight_decay(learning_rate, weight_decay, mask)
    return optax.chain(descent(check, scale, learning_rate), shrink)


def restart_adan(state: State) -> State:
    """Restarts Adan: moments and step count to zero, wherever they are in `state`.

    The authors call it once after warm-up, then at fixed epochs. The next step is a
    first step (difference zero). Counts of learning-rate schedules go on.

    Args:
        state: the optimizer state, with `ok.optim.AdanState` at any depth: in a chain,
            under `optax.masked`, `optax.inject_hyperparams`, `optax.MultiSteps`, ...

    Returns:
        The state with every `ok.optim.AdanState` in it restarted. Pure; works under jit.

    Raises:
        TypeError: if there is no `ok.optim.AdanState` in `state`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> tx = ok.optim.adan(0.1)
        >>> _, state = tx.update(jnp.ones(3), tx.init(jnp.ones(3)))
        >>> int(state[0].count), int(ok.optim.restart_adan(state)[0].count)
        (1, 0)

    Reference:
        `restart_opt` of the authors' code.
    """

    def is_adan(node: PyTree) -> bool:
        return isinstance(node, AdanState)

    def restart(node: PyTree) -> PyTree:
        if not is_adan(node):
            return node
        zeros = jax.tree.map(jnp.zeros_like, node)
        return zeros._replace(prev_grad=node.prev_grad)

    check, nodes = (
        Check("ok.optim.restart_adan"),
        jax.tree.leaves(state, is_leaf=is_adan),
    )
    text = f"needs a state with an `AdanState` in it, got {type(state).__name__}."
    check.that(any(map(is_adan, nodes)), text, TypeError)
    return jax.tree.map(restart, state, is_leaf=is_adan)


def _abs_sq(x: Array) -> Array:
    """|x|^2, real, without the root that `abs` takes of a complex number."""
    return jnp.real(x * jnp.conj(x))
