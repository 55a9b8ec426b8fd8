"""Adan: adaptive Nesterov momentum without an extrapolated gradient.

Nesterov's method wants the gradient at a point it has not reached yet. Adan estimates
it from the change of the gradient, d = g - g_prev, so a step costs one gradient.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from .._check import (
    check_decay,
    check_inexact,
    check_like,
    check_non_negative,
)
from .._types import (
    MaskOrFn,
    Params,
    ScalarOrSchedule,
    real_dtype,
    wide_dtype,
)
from ._decay import (
    is_zero,
    proximal_weight_decay,
)

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
) -> optax.GradientTransformation:
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
    call = "ok.optim.scale_by_adan"
    for name, decay in (("b1", b1), ("b2", b2), ("b3", b3)):
        check_decay(call, name, decay)
    check_non_negative(call, "eps", eps)
    if state_dtype is not None and not jnp.issubdtype(state_dtype, jnp.floating):
        raise TypeError(
            f"`{call}` needs a floating state_dtype, got {state_dtype!r}. Pass None "
            f"for the params' own, widen to float32, or for example jnp.float32."
        )

    def init(params: Params) -> AdanState:
        check_inexact(call, params)

        def zeros(dtype_of: Any) -> Params:
            return jax.tree.map(lambda p: jnp.zeros_like(p, dtype_of(p)), params)

        return AdanState(
            count=jnp.zeros([], jnp.int32),
            m=zeros(lambda p: _moment_dtype(p, state_dtype)),
            v=zeros(lambda p: _moment_dtype(p, state_dtype)),
            n=zeros(real_dtype),
            prev_grad=zeros(jnp.result_type),
        )

    def update(
        updates: Params, state: Any, params: Params | None = None
    ) -> tuple[Params, AdanState]:
        del params
        check_like(call, "gradients", updates, state.prev_grad)
        t = jnp.asarray(optax.safe_increment(state.count))

        def step(grad: Any, m: Any, v: Any, n: Any, prev: Any) -> tuple[Any, ...]:
            wide, real = wide_dtype(grad), real_dtype(grad)
            g, m_, v_ = (jnp.asarray(x, wide) for x in (grad, m, v))
            β1, β2, β3, ε = (jnp.asarray(x, real) for x in (b1, b2, b3, eps))
            c1, c2, c3 = (1 - β ** t.astype(real) for β in (β1, β2, β3))
            # The scalars are divided first: one division an entry instead of four.
            a1, a2, a3 = 1 / c1, β2 / c2, 1 / jnp.sqrt(c3)
            β1, β2, a1, a2 = (x.astype(wide) for x in (β1, β2, a1, a2))
            d = jnp.where(t == 1, jnp.zeros_like(g), g - jnp.asarray(prev, wide))
            m_ = β1 * m_ + (1 - β1) * g
            v_ = β2 * v_ + (1 - β2) * d
            n = β3 * n + (1 - β3) * _abs_sq(g + β2 * d)
            # The root of 0 has no derivative, which u does not need: m = v = 0 there.
            root = jnp.where(n > 0, jnp.sqrt(jnp.where(n > 0, n, 1)), 0)
            u = (a1 * m_ + a2 * v_) / (root * a3 + ε).astype(wide)
            # A square that overflowed would freeze its entry, with nothing to see.
            u = jnp.where(jnp.isfinite(n), u, jnp.nan)
            dtype = jnp.result_type(grad)
            # t > 0: the gradient, in a new array, as the caller may donate it. Where
            # XLA chooses shardings it now takes that of prev, and not the gradient's.
            kept = jnp.where(t == 0, prev, jnp.asarray(grad, dtype))
            return (
                u.astype(dtype),
                m_.astype(m.dtype),
                v_.astype(v.dtype),
                n,
                kept,
            )

        stepped = jax.tree.map(
            step, updates, state.m, state.v, state.n, state.prev_grad
        )
        u, m, v, n, prev_grad = _unzip(updates, stepped, 5)
        return u, AdanState(t, m, v, n, prev_grad)

    return optax.GradientTransformation(init, update)


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
) -> optax.GradientTransformation:
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
    check_non_negative("ok.optim.adan", "learning_rate", learning_rate)
    check_non_negative("ok.optim.adan", "weight_decay", weight_decay)
    moments = scale_by_adan(b1, b2, b3, eps, state_dtype=state_dtype)
    step = optax.scale_by_learning_rate(learning_rate)
    if is_zero(weight_decay):
        return optax.chain(moments, step)
    if proximal:
        shrink = proximal_weight_decay(learning_rate, weight_decay, mask)
        return optax.chain(moments, step, shrink)
    return optax.chain(moments, optax.add_decayed_weights(weight_decay, mask), step)


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

    if not any(map(is_adan, jax.tree.leaves(state, is_leaf=is_adan))):
        raise TypeError(
            f"`ok.optim.restart_adan` needs the state of an optimizer that contains Adan, "
            f"got {type(state).__name__} without an `ok.optim.AdanState` in it. Pass what "
            f"`tx.init` or `tx.update` of `ok.optim.adan` returned."
        )
    return jax.tree.map(restart, state, is_leaf=is_adan)


def _unzip(outer: PyTree, tree: PyTree, width: int) -> list[PyTree]:
    """A tree like `outer` whose leaves are tuples, as `width` trees like `outer`."""
    treedef = jax.tree.structure(outer)
    tuples = treedef.flatten_up_to(tree)
    return [treedef.unflatten([leaf[i] for leaf in tuples]) for i in range(width)]


def _moment_dtype(leaf: Any, state_dtype: Any) -> Any:
    """What m and v are stored in: complex where the leaf is."""
    if state_dtype is None:
        return wide_dtype(leaf)
    if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
        return jnp.dtype(complex if jnp.finfo(state_dtype).bits > 32 else jnp.complex64)
    return jnp.dtype(state_dtype)


def _abs_sq(x: Array) -> Array:
    """|x|^2, real, without the root that `abs` takes of a complex number."""
    return jnp.real(x * jnp.conj(x))
