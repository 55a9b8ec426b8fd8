"""Random pytrees that do not depend on how leaves are sharded."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, PyTree

from .._types import wide_dtype
from .structure import explicit_sharding

_BITS = 32  # signs in one random word


def signs(key: Array, tree: PyTree) -> PyTree:
    """Independent uniform ±1 entries, in the shapes and dtypes of `tree`.

    One random uint32 makes 32 of them. Each leaf has its own key, so leaves are
    independent; the values do not depend on how a leaf is sharded.

    Args:
        key: a random key, consumed.
        tree: arrays, or `jax.ShapeDtypeStruct`s.

    Returns:
        A tree like `tree`; a leaf that is an array keeps its explicit sharding.
    """
    return _draw(key, tree, _leaf_signs)


def normals(key: Array, tree: PyTree, num_rows: int | None = None) -> PyTree:
    """Independent standard normal entries, in float32 or wider.

    Args:
        key: a random key, consumed.
        tree: arrays, or `jax.ShapeDtypeStruct`s.
        num_rows: the length of a leading axis before the shapes of `tree`, if any.

    Returns:
        A tree like `tree`; without `num_rows`, a leaf keeps its explicit sharding.
    """
    rows = () if num_rows is None else (num_rows,)

    def draw(key: Array, leaf: Any) -> Array:
        z = jr.normal(key, (*rows, *jnp.shape(leaf)), wide_dtype(leaf))
        return z if rows else _placed(z, leaf)

    return _draw(key, tree, draw)


def _draw(key: Array, tree: PyTree, draw: Callable[[Array, Any], Array]) -> PyTree:
    """Draws each leaf with a key of its own."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves)) if leaves else ()
    return treedef.unflatten(map(draw, keys, leaves))


def _leaf_signs(key: Array, leaf: Any) -> Array:
    """±1 in the shape and dtype of one leaf: the first bits of enough random words."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    size = math.prod(shape)
    words = jr.bits(key, (-(-size // _BITS), 1), jnp.uint32)
    bits = (words >> lax.iota(jnp.uint32, _BITS)) & jnp.uint32(1)
    ones = bits.reshape(-1)[:size].reshape(shape)
    z = jnp.where(ones == 1, jnp.ones((), dtype), -jnp.ones((), dtype))
    return _placed(z, leaf)


def _placed(z: Array, leaf: Any) -> Array:
    sharding = explicit_sharding(leaf)
    return z if sharding is None else jax.sharding.reshard(z, sharding)
