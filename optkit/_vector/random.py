"""Random pytrees whose values do not depend on sharding."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from .._types import wide_dtype
from .structure import explicit_sharding

_BITS = 32  # signs in one random word


def signs(key: Array, tree: PyTree) -> PyTree:
    """Returns independent random signs in the shapes and dtypes of a tree.

    It may hold arrays, whose explicit shardings are kept, or `jax.ShapeDtypeStruct`s.
    """
    return _draw(key, tree, _leaf_signs)


def normals(key: Array, tree: PyTree, num_rows: int | None = None) -> PyTree:
    """Returns standard normals in the shapes of a tree, in float32 or wider.

    `num_rows` adds a leading axis. Explicit shardings are kept.
    """
    rows = () if num_rows is None else (num_rows,)

    def draw(key: Array, leaf: Any) -> Array:
        z = jr.normal(key, (*rows, *jnp.shape(leaf)), wide_dtype(leaf))
        sharding = explicit_sharding(leaf)
        if not rows or sharding is None:
            return z if rows else _placed(z, leaf)
        along = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        return jax.sharding.reshard(z, along)

    return _draw(key, tree, draw)


def _draw(key: Array, tree: PyTree, draw: Callable[[Array, Any], Array]) -> PyTree:
    """Draws each leaf with its own key."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves)) if leaves else ()
    return treedef.unflatten(map(draw, keys, leaves))


def _leaf_signs(key: Array, leaf: Any) -> Array:
    """One leaf of signs, from the first bits of enough random words."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    size = math.prod(shape)
    words = jr.bits(key, (-(-size // _BITS), 1), jnp.uint32)
    bits = (words >> lax.broadcasted_iota(jnp.uint32, (1, _BITS), 1)) & jnp.uint32(1)
    ones = bits.reshape(-1)[:size].reshape(shape)
    z = jnp.where(ones == 1, jnp.ones((), dtype), -jnp.ones((), dtype))
    return _placed(z, leaf)


def _placed(z: Array, leaf: Any) -> Array:
    sharding = explicit_sharding(leaf)
    z = z if sharding is None else jax.sharding.reshard(z, sharding)
    # Inside `jax.shard_map`, z has the type of a tangent of the leaf only if it varies
    # over the same axes.
    is_mapped = jax.sharding.get_abstract_mesh().manual_axes
    return z + jnp.zeros_like(leaf, z.dtype) if is_mapped else z
