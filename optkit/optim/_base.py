"""What every optimizer is given: checks, casts, the step count, a guard, and its chain.

An optimizer's file says what happens to the entries of one leaf. `leafwise` makes an
optax transform of that rule; `descent` puts learning rate and weight decay behind it.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import MaskOrFn, Params, ScalarOrSchedule, real_dtype, wide_dtype

_OWNER = "the params given to `init`"
_AGAIN = "Call `init` again with the params that the gradients belong to."
_NO_DIAGONAL = (
    "needs the diagonal of the Hessian, got hessian_diag=None. Compute it with the "
    "gradient, `value, grads, diag = ok.value_grad_and_diag(loss)(params, batch, "
    "key=key)`, and pass `tx.update(grads, state, params, hessian_diag=diag)`; or let "
    "`ok.optim.with_hutchinson(tx, key=key)` estimate it, and pass `value_fn=loss`."
)


class Zeros(NamedTuple):
    """Zeros like a leaf, in a dtype that depends on the leaf's."""

    dtype_of: Callable[[Any], Any]

    def __call__(self, leaf: Any) -> Array:
        """The array, sharded as the leaf is."""
        return jnp.zeros_like(leaf, self.dtype_of(leaf))

    def like(self, tree: PyTree) -> PyTree:
        """The same for each leaf of a tree."""
        return jax.tree.map(self, tree)


def accumulated_in(leaf: Any) -> Any:
    """The dtype in which a leaf is summed: its own, at least float32 or complex64."""
    is_inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return wide_dtype(leaf) if is_inexact else jnp.result_type(leaf)


WIDE = Zeros(accumulated_in)
"""A moment in the leaf's own dtype, at least float32."""

REAL = Zeros(real_dtype)
"""A moment of squares: real where the leaf is complex, at least float32."""

OWN = Zeros(jnp.result_type)
"""A copy of something like the leaf, exactly."""


def stored_in(state_dtype: Any) -> Zeros:
    """A moment in a dtype that the user chose; `WIDE` where that is None."""

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
    moments: Mapping[str, Zeros],
    hyper: tuple[Any, ...] = (),
    reads: str = "",
    guard: tuple[str, ...] = (),
    totals: Mapping[str, Callable[[Params], Array]] | None = None,
    accepts: Callable[..., None] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optax transform from the rule of one leaf.

    The rule is `rule(g, s, t, *hyper) -> (u, s)`, or `rule(g, x, s, t, *hyper)` where
    it reads a tree x beside the gradient. g, x and the moments in the state s are in
    float32 or wider; the step t = 1, 2, ... and the hyperparameters are real scalars of
    that precision. u and the moments are cast back, and u is NaN where a moment in
    `guard` is not finite: a square that overflows would freeze its entry unseen.

    Args:
        check: of the public function that makes the transform.
        rule: what happens to one leaf; dtypes promote inside it.
        make_state: the class of the state, with a field `count`.
        moments: the fields of the state that are trees like the params. Gradients must
            be like the first.
        hyper: numbers, or schedules, which are read at the count before the step.
        reads: the argument of `update` that x comes from: "hessian_diag", "params".
        guard: see above.
        totals: fields of the state that are scalars, made of the tree of all u.
        accepts: the check of the params' leaves; floating and complex if None.

    Returns:
        A transform that ignores extra arguments.
    """
    reference = next(iter(moments), None)
    totals = totals or {}

    def init(params: Params) -> Any:
        (check.inexact if accepts is None else accepts)(params=params)
        trees = {name: zeros.like(params) for name, zeros in moments.items()}
        scalars = {name: jnp.zeros([], jnp.float32) for name in totals}
        return make_state(count=jnp.zeros([], jnp.int32), **trees, **scalars)

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        if reference is not None:
            like, dtype_of = getattr(state, reference), moments[reference].dtype_of
            check_gradients(check, updates, like, dtype_of)
        others = [getattr(state, name) for name in moments]
        if reads == "params":
            others.insert(0, required_params(check, updates, params))
        elif reads:
            like = getattr(state, reference or "")
            others.insert(0, checked_diag(check, extra.get(reads), updates, like))
        t = jnp.asarray(optax.safe_increment(state.count))
        scalars = [x(state.count) if callable(x) else x for x in hyper]

        def one(g: Any, *leaves: Any) -> tuple[Any, ...]:
            real, kept = real_dtype(g), leaves[len(leaves) - len(moments) :]
            numbers = [jnp.asarray(x).astype(real) for x in (t, *scalars)]
            wide = [jnp.asarray(x).astype(wide_dtype(x)) for x in (g, *leaves)]
            data = wide[: len(wide) - len(moments)]
            s = state._replace(**dict(zip(moments, wide[len(data) :], strict=True)))
            with jax.numpy_dtype_promotion("standard"):
                u, s = rule(*data, s, *numbers)
            for name in guard:
                u = jnp.where(jnp.isfinite(getattr(s, name)), u, jnp.nan)
            return u, *(
                _stored(t, old, getattr(s, name), zeros)
                for old, (name, zeros) in zip(kept, moments.items(), strict=True)
            )

        stepped = jax.tree.map(one, updates, *others)
        u, *trees = unzip(updates, stepped, 1 + len(moments))
        found = {name: total(u) for name, total in totals.items()}
        u = jax.tree.map(lambda x, g: x.astype(jnp.result_type(g)), u, updates)
        trees = dict(zip(moments, trees, strict=True))
        return u, make_state(count=t, **trees, **found)

    return optax.GradientTransformationExtraArgs(init, update)


def descent(
    check: Check,
    scale: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    weight_decay: Any = 0.0,
    mask: MaskOrFn = None,
) -> optax.GradientTransformationExtraArgs:
    """The step -η (u + λ θ), with u what `scale` makes of the gradient."""
    check.non_negative(learning_rate=learning_rate, weight_decay=weight_decay)
    links = [scale]
    if not is_zero(weight_decay):
        links.append(optax.add_decayed_weights(weight_decay, mask))
    return optax.chain(*links, optax.scale_by_learning_rate(learning_rate))


def is_zero(number: Any) -> bool:
    """Whether this is the number 0, known without a device: then it is left out."""
    return isinstance(number, int | float) and number == 0


def safe_sqrt(x: Array) -> Array:
    """The root, with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def check_gradients(
    check: Check, updates: Params, like: Params, dtype_of: Any = accumulated_in
) -> None:
    """Raises unless gradients are like the params that the state was made for."""
    check.like("gradients", updates, like, _OWNER, _AGAIN, dtype_of=dtype_of)


def required_params(check: Check, updates: Params, params: Params | None) -> Params:
    """The params, which a transform reads, and which must be like the updates."""
    text = "needs params, got None. Pass them: `tx.update(grads, state, params)`."
    check.that(params is not None, text)
    check.like("updates", updates, params, "the params", dtype_of=None)
    return params


def checked_diag(
    check: Check, diag: Params | None, updates: Params, like: Params
) -> Params:
    """The `hessian_diag` that came with the updates, less what a mask hides from them.

    Args:
        check: of the public function.
        diag: what arrived: a tree like the whole params, or like `updates`.
        updates: the gradients, with `optax.MaskedNode` where a mask hides them.
        like: the state's tree, in the dtypes it accumulates in.

    Returns:
        The diagonal, a tree like `updates`.
    """
    check.that(diag is not None, _NO_DIAGONAL)
    visible = mask_like(diag, updates)
    check.like("hessian_diag", visible, like, _OWNER, dtype_of=accumulated_in)
    return visible


def mask_like(tree: PyTree, masked: PyTree) -> PyTree:
    """Hides of `tree` what is `optax.MaskedNode` in `masked`, where they match."""
    leaves, treedef = jax.tree.flatten(masked, is_leaf=is_masked)
    try:
        subtrees = treedef.flatten_up_to(tree)
    except ValueError:
        return tree  # of another structure: for `check.like` to name
    pairs = zip(leaves, subtrees, strict=True)
    return treedef.unflatten(leaf if is_masked(leaf) else x for leaf, x in pairs)


def is_masked(node: PyTree) -> bool:
    """Whether a mask of optax stands here in the place of a leaf or subtree."""
    return isinstance(node, optax.MaskedNode)


def unzip(outer: PyTree, tree: PyTree, width: int) -> list[PyTree]:
    """A tree like `outer` whose leaves are tuples, as `width` trees like `outer`."""
    treedef = jax.tree.structure(outer)
    tuples = treedef.flatten_up_to(tree)
    return [treedef.unflatten([leaf[i] for leaf in tuples]) for i in range(width)]


def _stored(t: Array, old: Any, new: Array, zeros: Zeros) -> Array:
    new = jnp.asarray(new).astype(jnp.result_type(old))
    # t > 0: this is a new array, as the caller may donate the gradient, and where XLA
    # chooses shardings it takes that of the old one.
    return jnp.where(t == 0, old, new) if zeros is OWN else new
