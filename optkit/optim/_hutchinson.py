"""The Hessian diagonal for loops that pass the objective to the optimizer.

`ok.value_grad_and_diag` computes loss, gradient and diagonal in one pass, outside the
optimizer. The wrapper here is for loops that compute the gradient themselves and pass
`value_fn=`, as for optax's line searches.
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
from ._base import OWN, is_masked, required


class HutchinsonState(NamedTuple):
    """Steps taken, the key of this run, the last estimate, and the state of `tx`.

    `key_data` holds integers, which any file format can store. If K is 1, the estimate
    is None.
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
    has_aux: bool = False,
    axis_name: str | tuple[str, ...] = (),
) -> optax.GradientTransformationExtraArgs:
    """Estimates the Hessian diagonal inside `update` and passes it to `tx`.

    At steps 0, K, 2K, ... it estimates the diagonal at the current params by z ∘ Hz
    with random signs z. Every step passes the last estimate on as `hessian_diag=`.
    `ok.optim.adahessian` averages it at every step, so its bias correction stays right.

    Make it the outermost wrapper, around `optax.chain`, `optax.masked` and the like:
    the objective needs all params, and a mask hides the diagonal as it hides the
    gradient. Only wrappers that hide no leaves, such as `optax.apply_if_finite`, may go
    around it. Inside `ok.optim.accumulate` it estimates on the last micro-batch.

    The estimate takes a separate pass, which XLA can merge with that of the gradient
    only if K is 1 and both are compiled together. `ok.value_grad_and_diag` always takes
    one pass. If states are vmapped, every step makes the pass, since counts may differ.

    The key of a run is `key` folded with the bits of the params given to `init`: only
    runs from the same params need different keys, even under `jax.vmap`. Probes and
    diagonal do not depend on how params and batch are sharded.

    Inside `jax.shard_map` or `jax.pmap`, name the axes of the batch as `axis_name`. The
    diagonal is then that of the mean loss, whether `value_fn` returns this mean, by
    `jax.lax.pmean`, or the loss of the device's own examples. Without `axis_name`, the
    diagonal is right only for the mean, with `check_vma=True` and params that do not
    vary.

    Args:
        tx: an optimizer that reads `hessian_diag=`, such as `ok.optim.adahessian(0.1)`.
        key: a random key. It is copied, so you may donate it or use it again.
        update_interval: K >= 1. Steps in between make no curvature pass. For K > 1 the
            state holds one more pytree like the params.
        num_probes: how many probes to average in each estimate, >= 1.
        has_aux: whether `value_fn` returns a pair (scalar, aux); aux is not used.
        axis_name: the mapped axes over which to average the diagonal.

    Returns:
        A transform with an `ok.optim.HutchinsonState`. Its `update` needs params and
        `value_fn=` (or `obj_fn=`): value_fn(params, **kwargs) -> a real scalar, called
        with those extra arguments of `update` that its signature names, as in optax's
        line searches. `tx` receives all extra arguments.

    Raises:
        ValueError: in `init`, if a mask hides params; in `update`, without params or
            exactly one objective, or if `hessian_diag` is given.
        TypeError: if `tx` is not a transform or `key` not one key; for complex leaves.

    Example:
        >>> import functools, jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda p, batch: jnp.mean((batch @ p - 1.0) ** 2)
        >>> tx = ok.optim.adahessian(0.3)
        >>> tx = ok.optim.with_hutchinson(tx, key=jax.random.key(0))
        >>> update = jax.jit(functools.partial(tx.update, value_fn=loss))
        >>> batch, params = jnp.diag(jnp.array([1.0, 20.0])), jnp.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(100):
        ...     grads = jax.grad(loss)(params, batch)
        ...     updates, state = update(grads, state, params, batch=batch)
        ...     params = optax.apply_updates(params, updates)
        >>> print(params.round(2))
        [1.   0.05]

    Reference:
        Yao et al. 2021, arXiv:2006.00719; Bekas, Kokiopoulou and Saad 2007.
    """
    check = Check("ok.optim.with_hutchinson")
    check.transform(tx=tx)
    check.count(update_interval=update_interval, num_probes=num_probes)
    check.key(key)
    check.instance(str | tuple, "a name such as 'data'", axis_name=axis_name)
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    typed = key if is_typed else jr.wrap_key_data(key)
    # A copy: the caller may donate the key.
    impl, root = jr.key_impl(typed), jnp.array(jr.key_data(typed), copy=True)
    inner = optax.with_extra_args_support(tx)
    axes = (axis_name,) if isinstance(axis_name, str) else axis_name

    def init(params: Params) -> HutchinsonState:
        is_hidden = any(map(is_masked, jax.tree.leaves(params, is_leaf=is_masked)))
        text = "needs all params, got some that a mask hides. Put it outside the mask."
        check.that(not is_hidden, text)
        check.real(params=params)
        run_key = jr.fold_in(jr.wrap_key_data(root, impl=impl), _bits(params))
        count, key_data = jnp.zeros([], jnp.int32), jr.key_data(run_key)
        diag = None if update_interval == 1 else jax.tree.map(OWN, params)
        return HutchinsonState(count, key_data, diag, inner.init(params))

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, HutchinsonState]:
        required(check, "params", params, updates)
        f = value_grad_and_diag(_objective(check, extra, has_aux), has_aux=has_aux)

        def estimate() -> Params:
            run_key = jr.wrap_key_data(state.key_data, impl=impl)
            key, here = jr.fold_in(run_key, state.count), _varying(params, axes)
            value, _, diag = f(here, key=key, num_probes=num_probes)
            for axis in axes:
                diag = _mean(diag, axis, value[0] if has_aux else value)
            return diag

        if update_interval == 1:
            diag, kept = estimate(), None
        else:
            is_due = state.count % update_interval == 0
            diag = kept = lax.cond(is_due, estimate, lambda: state.hessian_diag)
        count = jnp.asarray(optax.safe_increment(state.count))
        extra["hessian_diag"] = diag
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra)
        return updates, HutchinsonState(count, state.key_data, kept, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _bits(params: Params) -> Array:
    """The sum of the bit patterns of all entries, exact on any number of devices."""
    total = jnp.zeros([], jnp.uint32)
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            continue
        wide = jnp.asarray(leaf, wide_dtype(leaf))
        words = lax.bitcast_convert_type(wide, f"uint{8 * wide.dtype.itemsize}")
        if wide.dtype.itemsize > 4:
            words ^= words >> 32
        total += jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)
    return total


# With `jax.shard_map(check_vma=True)`, the default, JAX tracks which values vary over
# devices. For params that do not vary, it returns the sum of the devices' derivatives;
# so they are made to vary. Then the derivative of a mean over n devices is 1/n of the
# derivative on this device. With `check_vma=False`, it is the whole derivative on this
# device.


def _varying(tree: Params, axes: tuple[str, ...]) -> Params:
    """The tree, made to vary over mapped axes where JAX tracks that."""
    manual = jax.sharding.get_abstract_mesh().manual_axes

    def one(leaf: Any) -> Any:
        new = tuple(a for a in axes if a in manual and not _varies(leaf, a))
        return lax.pcast(leaf, new, to="varying") if new else leaf

    return jax.tree.map(one, tree)


def _mean(diag: Params, axis: str, value: Array) -> Params:
    """The mean over an axis; the sum if the value is a mean, as diag is then 1/n."""
    is_manual = axis in jax.sharding.get_abstract_mesh().manual_axes
    is_tracked = is_manual and any(_varies(x, axis) for x in jax.tree.leaves(diag))
    is_mean = is_tracked and not _varies(value, axis)
    return lax.psum(diag, axis) if is_mean else lax.pmean(diag, axis)


def _varies(x: Array, axis: str) -> bool:
    """Whether x is known to vary over an axis: JAX then refuses to make it vary."""
    try:
        lax.pcast(x, axis, to="varying")
    except ValueError:
        return True
    return False


def _objective(
    check: Check, extra: dict[str, Any], has_aux: bool
) -> Callable[[Params], Any]:
    """The objective as a function of the params alone."""
    fns = [extra[k] for k in ("value_fn", "obj_fn") if extra.get(k) is not None]
    got = f"got {'both' if fns else 'neither'}. Pass it to `tx.update`."
    text = f"needs the objective as one of `value_fn=` and `obj_fn=`, {got}"
    check.that(len(fns) == 1, text)
    text = "estimates hessian_diag, and got one. Omit the argument or the wrapper."
    check.that("hessian_diag" not in extra, text)
    fn = check.scalar(fns[0], "value_fn", has_aux)
    names = list(inspect.signature(fns[0]).parameters)[1:]
    kwargs = {name: x for name, x in extra.items() if name in names}
    return lambda params: fn(params, **kwargs)
