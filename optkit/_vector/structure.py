"""Structures of pytrees, and conversion to and from one vector."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from .._types import wide_dtype


def common_dtype(tree: PyTree) -> Any:
    """The widest of the leaves' dtypes, at least float32."""
    dtypes = [jnp.dtype(jnp.float32), *map(wide_dtype, jax.tree.leaves(tree))]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def explicit_sharding(leaf: Any, drop: int = 0) -> NamedSharding | None:
    """The explicit sharding of an array without its first `drop` axes, or None."""
    # On an explicit mesh, a product over a sharded axis needs an output sharding.
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    sharding = leaf.sharding if is_shape else jax.typeof(leaf).sharding
    mesh = getattr(sharding, "mesh", None)
    explicit = {AxisType.Explicit, AxisType.Manual}  # Manual inside `jax.shard_map`
    if mesh is None or explicit.isdisjoint(mesh.axis_types):
        return None
    return NamedSharding(mesh, PartitionSpec(*sharding.spec[drop:]))


def replicated(leaf: Array, ndim: int) -> NamedSharding | None:
    """A sharding that splits no axis, on the leaf's explicit mesh if it has one."""
    sharding = explicit_sharding(leaf)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*[None] * ndim))


def place_like(tree: PyTree, like: PyTree) -> PyTree:
    """The arrays of a tree with the explicit shardings of another."""

    def one(x: Array, like: Any) -> Array:
        sharding = explicit_sharding(like)
        return x if sharding is None else jax.sharding.reshard(x, sharding)

    return jax.tree.map(one, tree, like)


def gathered(tree: PyTree) -> PyTree:
    """The arrays of a tree; on an explicit mesh, each is whole on every device."""

    def one(x: Array) -> Array:
        sharding = replicated(x, jnp.ndim(x))
        return x if sharding is None else jax.sharding.reshard(x, sharding)

    return jax.tree.map(one, tree)


def structure_of(tree: PyTree, drop: int = 0) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and explicit shardings, without the first `drop` axes."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        shape, dtype = jnp.shape(leaf)[drop:], jnp.result_type(leaf)
        sharding = explicit_sharding(leaf, drop)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def narrowest_eps(tree: PyTree) -> float:
    """The eps of the narrowest dtype among the leaves."""
    dtypes = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    return max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0)


def to_vector(tree: PyTree) -> Float[Array, " n"]:
    """All entries in one vector, for small, dense problems only."""
    dtype = common_dtype(tree)
    leaves = jax.tree.leaves(gathered(tree))
    flat = [jnp.ravel(leaf).astype(dtype) for leaf in leaves]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, dtype)


def from_vector(vector: Float[Array, " n"], structure: PyTree) -> PyTree:
    """Undoes `to_vector`, in the shapes and dtypes of `structure`."""
    leaves, treedef = jax.tree.flatten(structure)
    taken, start = [], 0
    for leaf in leaves:
        stop = start + math.prod(leaf.shape)
        taken.append(vector[start:stop].reshape(leaf.shape).astype(leaf.dtype))
        start = stop
    return place_like(treedef.unflatten(taken), structure)


class Difference(NamedTuple):
    """The first place where a tree differs from its reference."""

    kind: Literal["structure", "shape", "dtype"]
    where: str  # the path of the leaf, such as "['w']"
    got: Any
    wanted: Any


def first_difference(
    tree: PyTree,
    reference: PyTree,
    dtype_of: Callable[[Any], Any] | None = jnp.result_type,
) -> Difference | None:
    """Compares structures, then shapes and dtypes leaf by leaf; None if all agree."""
    if (got := jax.tree.structure(tree)) != (want := jax.tree.structure(reference)):
        return Difference("structure", "", got, want)
    leaves = zip(
        jtu.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True
    )
    for (path, leaf), like in leaves:
        where, shape, dtype = jtu.keystr(path), jnp.shape(like), jnp.result_type(like)
        if jnp.shape(leaf) != shape:
            return Difference("shape", where, jnp.shape(leaf), shape)
        if dtype_of is not None and dtype_of(leaf) != dtype:
            return Difference("dtype", where, jnp.result_type(leaf), dtype)
    return None
