"""What transforms that read a Hessian diagonal, or hand one on, have in common."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from .._check import check_like
from .._types import (
    Params,
    wide_dtype,
)

Average: TypeAlias = Callable[[Array], Array]
"""From a leaf of the diagonal to an array of its shape."""


def accumulated_in(leaf: Any) -> Any:
    """The dtype a state sums a leaf in; of a leaf that cannot be summed, its own."""
    dtype = jnp.result_type(leaf)
    return wide_dtype(leaf) if jnp.issubdtype(dtype, jnp.inexact) else dtype


def checked_diag(call: str, diag: Params | None, updates: Params, like: Params) -> Any:
    """The `hessian_diag` that came with `updates`, less what a mask hides from them.

    Args:
        call: the public function to name in the message.
        diag: what arrived: a tree like the whole params, or like `updates`.
        updates: the gradients, with `optax.MaskedNode` where a mask hides them.
        like: the state's tree, in the dtypes it accumulates in.

    Returns:
        The diagonal, a tree like `updates`.

    Raises:
        ValueError: if there is none, or structure or a shape differs.
        TypeError: if a dtype differs.
    """
    if diag is None:
        raise ValueError(
            f"`{call}` reads the diagonal of the Hessian, got hessian_diag=None. "
            f"Either compute it with the gradient, `value, grads, diag = "
            f"ok.value_grad_and_diag(loss)(params, batch, key=key)`, and pass "
            f"`tx.update(grads, state, params, hessian_diag=diag)`; or let "
            f"`ok.optim.with_hutchinson(tx, key=key)` estimate it, and pass "
            f"`tx.update(grads, state, params, value_fn=loss)`."
        )
    visible = mask_like(diag, updates)
    check_like(call, "hessian_diag", visible, like, accumulated_in)
    return visible


def mask_like(tree: PyTree, masked: PyTree) -> PyTree:
    """Hides of `tree` what is `optax.MaskedNode` in `masked`, where they match."""
    leaves, treedef = jax.tree.flatten(masked, is_leaf=is_masked)
    try:
        subtrees = treedef.flatten_up_to(tree)
    except ValueError:
        return tree  # of another structure: for `check_like` to name
    pairs = zip(leaves, subtrees, strict=True)
    return treedef.unflatten(leaf if is_masked(leaf) else x for leaf, x in pairs)


def is_masked(node: PyTree) -> bool:
    """Whether a mask of optax stands here in the place of a leaf or subtree."""
    return isinstance(node, optax.MaskedNode)
