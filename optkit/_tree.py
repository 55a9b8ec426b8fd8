"""What `optax.tree` lacks: tall matrices of stacked rows, and random signs.

A tall matrix U of r rows is a pytree whose leaves have a leading axis r. Nothing here
ravels a tree, so sharded leaves stay where they are; sums are accumulated in float32
or wider, without TF32. Trees are real.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, ArrayLike, Float, PyTree

from ._types import wide_dtype

_BITS = 32  # signs in one random word
_BLOCK = 1 << 18  # entries that are cast to float32 at a time
_LONG = 1 << 19  # entries of a row that are too many to be added one by one


def common_dtype(tree: PyTree) -> Any:
    """The narrowest dtype that holds every leaf, at least float32."""
    dtypes = [jnp.dtype(jnp.float32), *map(wide_dtype, jax.tree.leaves(tree))]
    return max(dtypes, key=lambda dtype: dtype.itemsize)


def explicit_sharding(leaf: Any, drop: int = 0) -> NamedSharding | None:
    """The explicit sharding of an array less its first `drop` axes, if it has one."""
    # A product over a sharded axis is ambiguous on an explicit mesh: it must be told.
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    sharding = leaf.sharding if is_shape else jax.typeof(leaf).sharding
    mesh = getattr(sharding, "mesh", None)
    told = {AxisType.Explicit, AxisType.Manual}  # the latter inside `jax.shard_map`
    if mesh is None or told.isdisjoint(mesh.axis_types):
        return None
    return NamedSharding(mesh, PartitionSpec(*sharding.spec[drop:]))


def structure_of(tree: PyTree, drop: int = 0) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and explicit shardings, less each leaf's first `drop` axes."""

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        shape, dtype = jnp.shape(leaf)[drop:], jnp.result_type(leaf)
        sharding = explicit_sharding(leaf, drop)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return jax.tree.map(one, tree)


def num_rows(rows: PyTree) -> int:
    """r, the length of the leading axis that all leaves share; 0 without leaves."""
    leaves = jax.tree.leaves(rows)
    return leaves[0].shape[0] if leaves else 0


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """xᵀy, over all leaves."""
    dtype = common_dtype((x, y))
    return _sum(dtype, (), jax.tree.map(lambda a, b: _contract(a, b, 0), x, y))


def project(rows: PyTree, x: PyTree) -> Float[Array, " r"]:
    """Ux: the dot of each row with x."""
    dtype = common_dtype((rows, x))
    dots = jax.tree.map(lambda u, a: _contract(u, a, 1), rows, x)
    return _sum(dtype, (num_rows(rows),), dots)


def combine(c: Float[Array, " r"], rows: PyTree) -> PyTree:
    """Uᵀc: the rows, each times its coefficient, summed; in the rows' dtypes."""

    def combined(u: Array) -> Array:
        wide = lax.dot_general(
            c.astype(wide_dtype(u)),
            u,
            (((0,), (0,)), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=wide_dtype(u),
            out_sharding=explicit_sharding(u, drop=1),
        )
        return wide.astype(u.dtype)

    return jax.tree.map(combined, rows)


def gram(rows: PyTree) -> Float[Array, "r r"]:
    """UUᵀ: the dots of all pairs of rows."""
    r = num_rows(rows)
    dots = jax.tree.map(_gram_leaf, rows)
    return _sum(common_dtype(rows), (r, r), dots)


# A CPU has no product of narrow floats: XLA would cast all rows first, into a copy
# twice their size. So a few rows are cast at a time, and so are differences taken.


def project_blocks(
    rows: PyTree, x: PyTree, r: int, about: PyTree | None = None
) -> Float[Array, " r"]:
    """Ux, as `project`, without a float32 copy of narrow rows.

    Args:
        rows: U.
        x: a tree like one row.
        r: the number of rows, which a tree without leaves does not tell.
        about: a row w. With it, (U - 1wᵀ)x + 1(wᵀx): what rows have in common with w
            is subtracted before it is rounded.

    Returns:
        The dot of each row with x, in float32 or wider.
    """

    def projected(u: Array, a: Array, w: Array | None = None) -> Array:
        if wide_dtype(u) == u.dtype and w is None:
            return _contract(u, jnp.asarray(a, u.dtype), 1)

        def fill(dots: Array, block: Array, start: Any, _: Any) -> Array:
            new = _contract(block, a, 1)
            return lax.dynamic_update_slice_in_dim(dots, new, start, 0)

        a = jnp.asarray(a).astype(wide_dtype(u))
        near = 0 if w is None else _contract(w.astype(a.dtype), a, 0)
        zeros = jnp.zeros_like(_contract(u[:1], a, 1), shape=r)
        return near + _over_blocks(fill, zeros, u, w)

    others = () if about is None else (about,)
    dots = jax.tree.map(projected, rows, x, *others)
    return _sum(common_dtype(rows), (r,), dots)


def combine_blocks(
    c: Float[Array, " r"], rows: PyTree, about: PyTree | None = None
) -> PyTree:
    """Uᵀc, as `combine`, without a float32 copy of narrow rows.

    Args:
        c: a coefficient for each row.
        rows: U.
        about: a row w. With it, (U - 1wᵀ)ᵀc + (1ᵀc)w, as in `project_blocks`.

    Returns:
        A tree like one row, in float32 or wider.
    """

    def combined(u: Array, w: Array | None = None) -> Array:
        if wide_dtype(u) == u.dtype and w is None:
            return combine(c, u)

        def add(total: Array, block: Array, start: Any, is_new: Any) -> Array:
            part = lax.dynamic_slice_in_dim(c, start, block.shape[0])
            part = jnp.where(is_new, part, 0).astype(block.dtype)
            return total + combine(part, block)

        wide = wide_dtype(u)
        start = jnp.zeros_like(u[0], wide)
        if w is not None:
            start = jnp.sum(c).astype(wide) * w.astype(wide)
        return _over_blocks(add, start, u, w)

    others = () if about is None else (about,)
    return jax.tree.map(combined, rows, *others)


def _over_blocks(
    body: Callable[..., Array], result: Array, u: Array, about: Array | None
) -> Array:
    """Folds `body(result, block, start, is_new)` over float32 blocks of the rows."""
    r, n = u.shape[0], math.prod(u.shape[1:])
    count = -(-r // max(1, _BLOCK // max(1, n)))
    size = -(-r // count)

    def one(block: Array) -> Array:
        block = block.astype(wide_dtype(u))
        return block if about is None else block - about.astype(block.dtype)

    def step(i: Any, result: Array) -> Array:
        # The barrier ties u to i: else the cast of all rows is moved out of the loop.
        here, i = lax.optimization_barrier((u, i))
        start = jnp.minimum(i * size, r - size)  # the last block may overlap
        is_new = start + jnp.arange(size) >= i * size
        return body(
            result, one(lax.dynamic_slice_in_dim(here, start, size)), start, is_new
        )

    if count == 1:
        return body(result, one(u), 0, True)
    return lax.fori_loop(0, count, step, result)


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
    leaves, treedef = jax.tree.flatten(tree)
    keys = jr.split(key, len(leaves)) if leaves else ()
    return treedef.unflatten(map(_leaf_signs, keys, leaves))


def smallest(count: ArrayLike, tree: PyTree, mask: PyTree) -> PyTree:
    """Where the `count` smallest entries are, over all leaves together.

    The bits of a non-negative float, read as an integer, keep the order of floats. So
    the threshold is found exactly by bisection on its bits, from counts alone: nothing
    is sorted or gathered. A negative entry or a NaN counts as larger than any other.

    Args:
        count: how many, an integer; ties at the threshold go together, so there can
            be more.
        tree: real leaves, non-negative.
        mask: boolean arrays like the leaves; only entries where it is true count.

    Returns:
        Boolean arrays like the leaves.
    """
    dtype = common_dtype(tree)
    num_bits = 8 * jnp.dtype(dtype).itemsize
    unsigned = jnp.dtype(f"uint{num_bits}")

    def as_bits(x: Array) -> Array:
        return lax.bitcast_convert_type(x.astype(dtype), unsigned)

    bits = jax.tree.map(as_bits, tree)

    def num_below(t: Array) -> Array:
        counts = jax.tree.map(lambda b, m: jnp.sum(m & (b < t)), bits, mask)
        return sum(jax.tree.leaves(counts), jnp.zeros([], int))

    def halve(i: Array, t: Array) -> Array:
        bit = jnp.ones([], unsigned) << (num_bits - 1 - i).astype(unsigned)
        return jnp.where(num_below(t | bit) < count, t | bit, t)

    last = lax.fori_loop(0, num_bits, halve, jnp.zeros([], unsigned))
    any_wanted = jnp.asarray(count) > 0
    return jax.tree.map(lambda b, m: m & (b <= last) & any_wanted, bits, mask)


def to_vector(tree: PyTree) -> Float[Array, " n"]:
    """All entries in one vector of `common_dtype`: for small, dense problems only."""
    dtype = common_dtype(tree)
    flat = [jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(flat) if flat else jnp.zeros(0, dtype)


def from_vector(vector: Float[Array, " n"], structure: PyTree) -> PyTree:
    """The tree in the shapes and dtypes of `structure` whose `to_vector` this is."""
    leaves, treedef = jax.tree.flatten(structure)
    taken, start = [], 0
    for leaf in leaves:
        stop = start + math.prod(leaf.shape)
        taken.append(vector[start:stop].reshape(leaf.shape).astype(leaf.dtype))
        start = stop
    return treedef.unflatten(taken)


def _contract(x: Array, y: Array, num_kept: int) -> Array:
    """Dots over all axes of x after the first `num_kept`, which stay."""
    x, y = jnp.asarray(x), jnp.asarray(y)
    contracted = tuple(range(num_kept, x.ndim))

    def product(x: Array, y: Array, num_free: int = 0) -> Array:
        return lax.dot_general(
            x,
            y,
            ((contracted, tuple(range(num_free, y.ndim))), ((), ())),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=common_dtype((x, y)),
            out_sharding=_replicated(x, num_kept + num_free),
        )

    # XLA's product of a matrix and a vector on CPU adds the entries of a row one by
    # one: in float32 it is off by 1e-3 for rows of 2²⁴. That of two vectors does not,
    # and that of two matrices adds blocks.
    def in_pairs(x: Array, y: Array) -> Array:
        return product(x, jnp.stack([y, y]), 1)[..., 0]

    if num_kept == 0 or y.size < _LONG:
        return product(x, y)
    if x.shape[0] == 1:
        return _contract(x[0], y, 0)[None]
    return lax.platform_dependent(x, y, cpu=in_pairs, default=product)


def _gram_leaf(u: Array) -> Array:
    """UUᵀ of one leaf, over all axes but the first."""
    axes = tuple(range(1, u.ndim))
    return lax.dot_general(
        u,
        u,
        ((axes, axes), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=wide_dtype(u),
        out_sharding=_replicated(u, 2),
    )


def _sum(dtype: Any, shape: tuple[int, ...], terms: PyTree) -> Array:
    """The sum of the leaves, of which there may be none."""
    terms = [term.astype(dtype) for term in jax.tree.leaves(terms)]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)


def _leaf_signs(key: Array, leaf: Any) -> Array:
    """±1 in the shape and dtype of one leaf: the first bits of enough random words."""
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    size = math.prod(shape)
    words = jr.bits(key, (-(-size // _BITS), 1), jnp.uint32)
    bits = (words >> lax.iota(jnp.uint32, _BITS)) & jnp.uint32(1)
    ones = bits.reshape(-1)[:size].reshape(shape)
    z = jnp.where(ones == 1, jnp.ones((), dtype), -jnp.ones((), dtype))
    sharding = explicit_sharding(leaf)
    return z if sharding is None else jax.sharding.reshard(z, sharding)


def _replicated(leaf: Array, ndim: int) -> NamedSharding | None:
    """A sharding on the leaf's explicit mesh, if it has one, that splits no axis."""
    sharding = explicit_sharding(leaf)
    if sharding is None:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*[None] * ndim))
