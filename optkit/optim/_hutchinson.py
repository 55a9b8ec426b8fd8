"""The Hessian diagonal for loops that hand the optimizer a function of the params.

`ok.value_grad_and_diag` makes loss, gradient and diagonal in one pass, outside the
optimizer. Where a loop computes the gradient itself and passes `value_fn=`, as for
optax's line searches, the wrapper here makes the diagonal.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Int, UInt32

from .._check import Check
from .._curvature.diagonal import value_grad_and_diag
from .._types import Params, wide_dtype
from ._base import OWN, is_masked, required_params

_MASKED = (
    "needs whole params to call the objective, got params that `optax.masked` or "
    "`optax.partition` has hidden in part. Put it outside: "
    "`ok.optim.with_hutchinson(optax.masked(tx, mask), key=key)`."
)
_NO_OBJECTIVE = (
    "needs the objective, as one of `value_fn=` and `obj_fn=`. Pass `tx.update(grads, "
    "state, params, value_fn=loss)`, and by name what else the loss takes."
)


class HutchinsonState(NamedTuple):
    """What the next estimate needs.

    Attributes:
        count: steps taken.
        key_data: of the run's own random key, as plain integers that any file can hold.
        hessian_diag: the last estimate, in the params' dtypes; None if K is 1.
        inner_state: of the wrapped optimizer.
    """

    count: Int[Array, ""]
    key_data: UInt32[Array, "..."]
    hessian_diag: Params
    inner_state: Any


def with_hutchinson(
    tx: optax.GradientTransformation,
    *,
    key: Array,
    update_interval: int = 1,
    num_probes: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Estimates the Hessian diagonal inside `update`, and hands it on to `tx`.

    At steps 0, K, 2K, ... the diagonal is estimated at the current params, by z ∘ Hz
    with random signs z; every step passes the last estimate on as `hessian_diag=`.
    `ok.optim.adahessian` averages it anew each step, so its bias correction stays right.

    It is the outermost wrapper, around `optax.chain`, `optax.masked`,
    `optax.partition`, `optax.inject_hyperparams`: the objective needs whole params,
    and a mask hides the diagonal where it hides the gradient. Around it may be what
    hides no leaves, as `optax.apply_if_finite`; inside `ok.optim.accumulate` its diagonal is
    of the last micro-batch.

    The gradient that `update` receives is not used: the estimate is a pass of its own.
    Only where K is 1 and both are compiled together may XLA merge them;
    `ok.value_grad_and_diag` is one pass wherever it is called.

    The state's key is `key` folded with the bits of the params that `init` gets, so
    runs that start at different params draw different probes, also under `jax.vmap`
    with one constant key. Runs that start at the same params need different keys.
    Where states are vmapped, their counts may differ: then every step makes the pass.

    Probes do not depend on how params and batch are sharded, nor does the diagonal;
    inside `jax.shard_map`, let `value_fn` return the mean over devices.

    Args:
        tx: an optimizer that reads `hessian_diag=`, such as `ok.optim.adahessian(0.1)`.
        key: a random key, copied: it may be donated, and used again.
        update_interval: K >= 1. Steps between make no curvature pass; for K > 1 the
            state holds one more copy of the params' size.
        num_probes: probes averaged in each estimate, at least 1.

    Returns:
        A transform whose state is an `ok.optim.HutchinsonState`. Its `update` needs params
        and `value_fn=`, or `obj_fn=`, which is the same: value_fn(params, **kwargs) ->
        a real scalar, given those extra arguments of `update` that it has by name, as
        optax's line searches do. All extra arguments are passed on to `tx`.

    Raises:
        ValueError: for an interval or a number of probes below 1; in `init`, for
            params that a mask has hidden in part; in `update`, without params or
            `value_fn`, with both names, or with a `hessian_diag` of the caller's.
        TypeError: for a `tx` that is no optax transform, or something else than one
            random key; in `init`, for leaves that are not real and floating; in
            `update`, for a `value_fn` that is no function.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)
        >>> tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.3), key=jax.random.key(0))
        >>> @jax.jit
        ... def step(params, state, batch):
        ...     grads = jax.grad(loss)(params, batch)
        ...     extra = {"value_fn": loss, "batch": batch}
        ...     updates, state = tx.update(grads, state, params, **extra)
        ...     return optax.apply_updates(params, updates), state
        >>> batch, params = jnp.diag(jnp.array([1.0, 20.0])), jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     params, state = step(params, state, batch)
        >>> print(params.round(2))
        [1.   0.05]

    Reference:
        Yao et al. 2021, arXiv:2006.00719; Bekas, Kokiopoulou and Saad 2007.
    """
    check = Check("ok.optim.with_hutchinson")
    check.transform(tx=tx)
    check.count(update_interval=update_interval, num_probes=num_probes)
    check.key(key)
    impl, root = _copied_key(key)
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> HutchinsonState:
        is_hidden = any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked)))
        check.that(not is_hidden, _MASKED)
        check.real(params=params)
        own_key = jr.fold_in(jr.wrap_key_data(root, impl=impl), _bits(params))
        return HutchinsonState(
            count=jnp.zeros([], jnp.int32),
            key_data=jr.key_data(own_key),
            hessian_diag=None if update_interval == 1 else OWN.like(params),
            inner_state=inner.init(params),
        )

    def update(
        updates: Params,
        state: Any,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, HutchinsonState]:
        required_params(check, updates, params)
        objective = _objective(check, extra_args)

        def estimate() -> Params:
            own_key = jr.wrap_key_data(state.key_data, impl=impl)
            key = jr.fold_in(own_key, state.count)
            f = value_grad_and_diag(objective)
            return f(params, key=key, num_probes=num_probes)[2]

        if update_interval == 1:
            diag, kept = estimate(), None
        else:
            is_due = state.count % update_interval == 0
            diag = kept = lax.cond(is_due, estimate, lambda: state.hessian_diag)
        count = jnp.asarray(optax.safe_increment(state.count))
        updates, inner_state = inner.update(
            updates, state.inner_state, params, **extra_args, hessian_diag=diag
        )
        return updates, HutchinsonState(count, state.key_data, kept, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _copied_key(key: Array) -> tuple[Any, Array]:
    """A random key's implementation, and a copy of its data that nobody can donate."""
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    typed = key if is_typed else jr.wrap_key_data(key)
    return jr.key_impl(typed), jnp.array(jr.key_data(typed), copy=True)


def _bits(params: Params) -> Array:
    """The sum of the bit patterns of all entries: exact, so the same on any devices."""
    total = jnp.zeros([], jnp.uint32)
    for leaf in jax.tree.leaves(params):
        wide = jnp.asarray(leaf, wide_dtype(leaf))
        words = lax.bitcast_convert_type(wide, f"uint{8 * wide.dtype.itemsize}")
        if wide.dtype.itemsize > 4:
            words ^= words >> 32
        total += jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)
    return total


def _objective(check: Check, extra_args: dict[str, Any]) -> Callable[[Params], Array]:
    """The function of the params alone whose Hessian is wanted."""
    given = [extra_args.get(name) for name in ("value_fn", "obj_fn")]
    fns = [fn for fn in given if fn is not None]
    check.that(len(fns) == 1, _NO_OBJECTIVE)
    text = "estimates hessian_diag, and got one. Leave out the argument or the wrapper."
    check.that("hessian_diag" not in extra_args, text)
    fn = check.scalar(fns[0], "value_fn")
    names = list(inspect.signature(fns[0]).parameters)[1:]
    kwargs = {name: x for name, x in extra_args.items() if name in names}
    return lambda params: fn(params, **kwargs)
