"""The shell of every optimizer: checks, casts, the step count, a guard, and the chain.

An optimizer's file states what happens to one leaf of the params. `leafwise` turns that
rule into an optax transform; `descent` adds weight decay and the learning rate.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule, real_dtype, wide_dtype
from .._vector import cast_like

_ADVICE = {
    "gradients": "Call `init` again with the params of these gradients, or cast them.",
    "params": "Pass them: `tx.update(grads, state, params)`.",
    "hessian_diag": "Compute it with the gradient, `value, grads, diag = "
    "ok.value_grad_and_diag(loss)(params, batch, key=key)`, or let "
    "`ok.optim.with_hutchinson(tx, key=key)` estimate it, and pass `value_fn=loss`. "
    "`TrainState.apply_gradients` of Flax drops both: call `state.tx.update`.",
}


class Zeros(NamedTuple):
    """Makes zeros with the shape and sharding of a leaf, in a dtype derived from it."""

    dtype_of: Callable[[Any], Any]

    def __call__(self, leaf: Any) -> Array:
        return jnp.zeros_like(leaf, self.dtype_of(leaf))


def accumulation_dtype(leaf: Any) -> Any:
    """The dtype to sum a leaf in: its own, at least float32 if it is inexact."""
    is_inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return wide_dtype(leaf) if is_inexact else jnp.result_type(leaf)


WIDE = Zeros(accumulation_dtype)
"""A mean of gradients: the dtype of the leaf, at least float32."""

REAL = Zeros(real_dtype)
"""A mean of squares: as `WIDE`, but real if the leaf is complex."""

OWN = Zeros(jnp.result_type)
"""A copy of a gradient: the dtype of the leaf, whatever it is."""


def stored_in(state_dtype: Any) -> Zeros:
    """A mean of gradients in the dtype that the user chose; `WIDE` if that is None."""

    def dtype_of(leaf: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            is_double = jnp.finfo(state_dtype).bits > 32
            return jnp.dtype(complex if is_double else jnp.complex64)
        return jnp.dtype(state_dtype)

    return WIDE if state_dtype is None else Zeros(dtype_of)


def leafwise(
    check: Check,
    rule: Callable[..., tuple[Array, Any]],
    make_state: Callable[..., Any],
    *,
    moments: Mapping[str, Callable[[Any], PyTree]],
    decays: tuple[Any, ...] = (),
    hyper: tuple[Any, ...] = (),
    reads: tuple[str, ...] = (),
    guard: tuple[str, ...] = (),
    statistics: Mapping[str, Callable[[Params], Array]] | None = None,
    check_params: Callable[..., None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transform from the rule for one leaf of the params.

    At step t = 1, 2, ... `update` calls, for each leaf,

        u, s = rule(g, *data, s, t, *decays, *hyper)

    Here g is the gradient, data are the leaves of the trees in `reads`, s is the state
    with the moments of this leaf, and u is the update, which points along the
    gradient. The rule sees whole leaves, in float32 or wider; t and the hyperparameters
    are real scalars of that precision, and dtypes promote. What it returns is cast
    back: u to the dtype of the gradient, each moment to its own.

    Args:
        check: the `Check` of the public function.
        rule: the algorithm, as above: equations, without casts or checks.
        make_state: the class of the state, a NamedTuple with a field `count`.
        moments: the fields of the state that belong to a leaf, each with the function
            that makes its initial value from the leaf, such as `WIDE`. Gradients must
            have the structure, shapes and dtypes that the first `Zeros` implies.
        decays: numbers in [0, 1), scalar arrays, or schedules, read at the count before
            the step. An array that is not below 1 makes u NaN.
        hyper: other hyperparameters, likewise, in any range.
        reads: arguments of `update` that are trees like the gradient: "params", or an
            extra argument such as "hessian_diag".
        guard: moments that must be finite. Where one is not, u is NaN; otherwise a
            square that overflows would silently freeze its entry.
        statistics: scalar fields of the state, as functions of the tree of all u.
        check_params: the check of the params in `init`. Default: `check.inexact`.

    Returns:
        A transform that ignores the extra arguments it does not read.

    Example:
        >>> from optkit._check import Check
        >>> class State(NamedTuple):
        ...     count: Array
        ...     m: Params
        >>> def rule(g, s, t, b):
        ...     m = b * s.m + (1 - b) * g
        ...     return m / (1 - b**t), s._replace(m=m)
        >>> tx = leafwise(Check("f"), rule, State, moments={"m": WIDE}, decays=(0.5,))
        >>> grads = jnp.ones(2, jnp.bfloat16)
        >>> updates, state = tx.update(grads, tx.init(grads))
        >>> print(updates.dtype, state.m)
        bfloat16 [0.5 0.5]
    """
    statistics, n = statistics or {}, 1 + len(decays)
    zeros = [(name, make) for name, make in moments.items() if isinstance(make, Zeros)]

    def init(params: Params) -> Any:
        (check_params or check.inexact)(params=params)
        trees = {name: jax.tree.map(make, params) for name, make in moments.items()}
        scalars = {name: jnp.zeros([], jnp.float32) for name in statistics}
        return make_state(count=jnp.zeros([], jnp.int32), **trees, **scalars)

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        for name, make in zeros[:1]:
            check_gradients(check, updates, getattr(state, name), make.dtype_of)
        given = {"params": params} | extra
        data = [required(check, name, given.get(name), updates) for name in reads]
        t = jnp.asarray(optax.safe_increment(state.count))
        now = [number_at(x, state.count) for x in decays + hyper]
        check.wide(**{f"decay {i}": b for i, b in enumerate(now[: n - 1], 1)})

        def one(g: Any, *leaves: Any) -> tuple[Any, ...]:
            numbers = [jnp.asarray(x).astype(real_dtype(g)) for x in (t, *now)]
            numbers[1:n] = map(_below_one, numbers[1:n])
            g, *x = jax.tree.map(_widen, (g, *leaves[: len(reads)]))
            old = dict(zip(moments, leaves[len(reads) :], strict=True))
            s = state._replace(**jax.tree.map(_widen, old))
            with jax.numpy_dtype_promotion("standard"):
                u, s = rule(g, *x, s, *numbers)
            for name in guard:
                u = jnp.where(jnp.isfinite(getattr(s, name)), u, jnp.nan)
            return u, *(
                _store(t, old[name], getattr(s, name), make is OWN)
                for name, make in moments.items()
            )

        trees = updates, *data, *(getattr(state, name) for name in moments)
        treedef = jax.tree.structure(updates)
        leaves = zip(*map(treedef.flatten_up_to, trees), strict=True)
        stepped = [one(*x) for x in leaves]
        u, *trees = (
            treedef.unflatten(x[i] for x in stepped) for i in range(1 + len(moments))
        )
        fields = dict(zip(moments, trees, strict=True))
        fields |= {name: f(u) for name, f in statistics.items()}
        return cast_like(u, updates), make_state(count=t, **fields)

    return optax.GradientTransformationExtraArgs(init, update)


def descent(
    check: Check,
    links: Sequence[optax.GradientTransformation],
    learning_rate: ScalarOrSchedule,
    weight_decay: Any = None,
    mask: MaskOrFn = None,
) -> optax.GradientTransformationExtraArgs:
    """The chain for -η (u + λ θ), where the links turn the gradient into u."""
    # As in optax, an argument that is not None adds a link, even if it is zero. So the
    # state has the same structure inside `optax.inject_hyperparams`.
    check.non_negative(learning_rate=learning_rate)
    check.optional.non_negative(weight_decay=weight_decay)
    if weight_decay is not None:
        links = [*links, add_decay(weight_decay, mask)]
    return optax.chain(*links, scale_by_learning_rate(learning_rate))


def scale_by_learning_rate(rate: ScalarOrSchedule) -> optax.GradientTransformation:
    """Optax's link, in float32 or wider: updates keep their dtypes for any rate."""
    return _in_float32(optax.scale_by_learning_rate(_real(rate)))


def add_decay(decay: Any, mask: MaskOrFn) -> optax.GradientTransformationExtraArgs:
    """`optax.add_decayed_weights`, likewise."""
    return decaying(_in_float32(optax.add_decayed_weights(_real(decay))), decay, mask)


def decaying(
    tx: optax.GradientTransformation, decay: Any, mask: MaskOrFn
) -> optax.GradientTransformationExtraArgs:
    """A link of weight decay, on the leaves of a mask; the number 0 needs no params."""
    is_zero = isinstance(decay, int | float) and decay == 0

    def update(updates: Params, state: Any, params: Params = None, **_: Any) -> Any:
        # 0 times the params is 0 times any tree.
        params = updates if is_zero and params is None else params
        return tx.update(updates, state, params)

    link = optax.GradientTransformationExtraArgs(tx.init, update)
    return link if mask is None else optax.masked(link, mask)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs a link without extra arguments in float32 or wider, and casts back."""

    def update(updates: Params, state: Any, params: Params = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            wide = jax.tree.map(_widen, (updates, params))
            scaled, state = tx.update(wide[0], state, wide[1])
        return cast_like(scaled, updates), state

    return optax.GradientTransformation(tx.init, update)


def _real(number: Any) -> Any:
    """A number or schedule, without the imaginary part of 0 that injection may add."""
    return partial(number_at, number) if callable(number) else number_at(number)


def number_at(number: Any, count: Any = None) -> Any:
    """The value of a hyperparameter at a step count."""
    # `optax.inject_hyperparams` makes them complex, beside complex params.
    value: Any = number(count) if callable(number) else number
    return jnp.real(value) if jnp.iscomplexobj(value) else value


def safe_sqrt(x: Array) -> Array:
    """The square root, with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def check_gradients(
    check: Check, updates: Params, like: Params, dtype_of: Any = accumulation_dtype
) -> None:
    """Raises unless the gradients match the params that the state was made for."""
    owner, advice = "the params given to `init`", _ADVICE["gradients"]
    check.like("gradients", updates, like, owner, advice, dtype_of=dtype_of)


def required(check: Check, name: str, tree: Params | None, updates: Params) -> Params:
    """An argument of `update`, a pytree like the updates and masked like them."""
    text = f"needs {name}, got {name}=None. {_ADVICE.get(name, '')}"
    check.that(tree is not None, text)
    tree = mask_like(tree, updates)
    dtype_of = None if name == "params" else accumulation_dtype
    check.like(name, tree, widened(updates), "the updates", dtype_of=dtype_of)
    return tree


def widened(tree: PyTree) -> PyTree[jax.ShapeDtypeStruct]:
    """The shapes of the leaves, and the dtypes to sum them in."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), accumulation_dtype(x)), tree
    )


def mask_like(tree: PyTree, masked: PyTree) -> PyTree:
    """Hides those leaves of `tree` that are `optax.MaskedNode` in `masked`."""
    leaves, treedef = jax.tree.flatten(masked, is_leaf=is_masked)
    try:
        subtrees = treedef.flatten_up_to(tree)
    except ValueError:
        return tree  # the structures differ, which `check.like` reports
    pairs = zip(leaves, subtrees, strict=True)
    return treedef.unflatten(leaf if is_masked(leaf) else x for leaf, x in pairs)


def is_masked(node: PyTree) -> bool:
    """Whether an optax mask hides a leaf or subtree here."""
    return isinstance(node, optax.MaskedNode)


def _widen(leaf: Any) -> Array:
    return jnp.asarray(leaf).astype(accumulation_dtype(leaf))


def _below_one(decay: Array) -> Array:
    """The decay, or NaN if it was rounded to 1, so that nothing would decay."""
    return jnp.where(decay < 1, decay, jnp.nan)


def _store(t: Array, old: PyTree, new: PyTree, is_copy: bool) -> PyTree:
    new = cast_like(new, old)
    # t is never 0. A copied gradient must be a new array, since the caller may donate
    # the gradient; where XLA chooses the sharding, it must be that of `old`.
    return jnp.where(t == 0, old, new) if is_copy else new
