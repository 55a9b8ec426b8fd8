"""Columns of stacked rows: sums over all columns in chunks, and columns by index.

The rows may fill most of the memory, so columns are converted to another precision one
chunk at a time.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._types import wide_dtype
from .._vector import common_dtype, gram, num_rows

_CHUNK = 2048  # columns


def small_dtype() -> Any:
    """The dtype for r x r matrices: float64 if JAX has it enabled, else float32."""
    return jnp.result_type(float)


def accurate_gram(rows: PyTree) -> Float[Array, "r r"]:
    """Returns UUᵀ in `small_dtype()`, rounded as if summed in twice the precision.

    With float64 enabled it is summed in float64, otherwise in float32 over chunks of
    columns with compensation (Kahan). For nearly parallel rows, a plain float32 sum is
    off by more than the damping. Rows that are sharded across devices use the plain
    product, because slicing would gather them.
    """
    if any(_is_sharded(leaf) for leaf in jax.tree.leaves(rows)):
        return gram(rows).astype(small_dtype())
    return _chunked_gram(rows)


@jax.jit
def _chunked_gram(rows: PyTree) -> Array:
    dtype, r = small_dtype(), num_rows(rows)

    def leaf_gram(carry: tuple[Array, Array], u: Array) -> tuple[Array, Array]:
        flat = _flat(u)
        count, rest = divmod(flat.shape[1], _CHUNK)

        def add(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            here, i = _tied(flat, i)
            chunk = lax.dynamic_slice_in_dim(here, i * _CHUNK, _CHUNK, 1)
            return _compensated(carry, gram(chunk.astype(dtype)))

        carry = lax.fori_loop(0, count, add, carry) if count else carry
        if not rest:
            return carry
        return _compensated(carry, gram(flat[:, -rest:].astype(dtype)))

    zeros = jnp.zeros((r, r), dtype)
    total, _ = functools.reduce(leaf_gram, jax.tree.leaves(rows), (zeros, zeros))
    return total


def column_squares(matrix: Float[Array, "k r"], rows: PyTree) -> PyTree:
    """Σ_i (MU)_ij² for each column j, without forming MU."""
    return _by_chunks(lambda u: jnp.sum(_matmul(matrix, u) ** 2, axis=0), rows)


def mixed(matrix: Float[Array, "r r"], rows: PyTree) -> PyTree:
    """MU in the dtypes of the rows, at least float32."""
    return _by_chunks(lambda u: _matmul(matrix, u).astype(wide_dtype(u)), rows)


def _matmul(matrix: Array, u: Array) -> Array:
    return jnp.matmul(matrix, u.astype(matrix.dtype), precision=lax.Precision.HIGHEST)


def _by_chunks(f: Callable[[Array], Array], rows: PyTree) -> PyTree:
    """Applies f to the columns of each leaf by chunks; f maps (r, k) to (..., k)."""

    def over_leaf(u: Array) -> Array:
        flat = _flat(u)
        r, n = flat.shape
        if n <= _CHUNK:
            result = f(flat)
            return result.reshape(*result.shape[:-1], *u.shape[1:])
        out = jax.eval_shape(f, jax.ShapeDtypeStruct((r, _CHUNK), u.dtype))

        def fill(i: Any, result: Array) -> Array:
            here, i = _tied(flat, i)
            start = jnp.minimum(i * _CHUNK, n - _CHUNK)  # the last chunk may overlap
            part = f(lax.dynamic_slice_in_dim(here, start, _CHUNK, 1))
            return lax.dynamic_update_slice_in_dim(result, part, start, result.ndim - 1)

        zeros = jnp.zeros((*out.shape[:-1], n), out.dtype)
        result = lax.fori_loop(0, -(-n // _CHUNK), fill, zeros)
        return result.reshape(*result.shape[:-1], *u.shape[1:])

    return jax.tree.map(over_leaf, rows)


def _tied(u: Array, i: Any) -> tuple[Array, Any]:
    """Both as they are, so that XLA does not cast all of u outside a loop over i."""
    return lax.optimization_barrier((u, i))


def _flat(u: Array) -> Float[Array, "r n"]:
    return u.reshape(u.shape[0], math.prod(u.shape[1:]))  # r may be 0


def places(
    rows: PyTree, index: Int[Array, "..."]
) -> Iterator[tuple[Int[Array, "..."], Bool[Array, "..."]]]:
    """Yields for each leaf the index within it, clipped, and whether it lies there.

    The index counts coordinates leaf after leaf.
    """
    start = 0
    for leaf in jax.tree.leaves(rows):
        size = math.prod(leaf.shape[1:])
        is_here = (index >= start) & (index < start + size)
        yield jnp.clip(index - start, 0, max(size - 1, 0)), is_here
        start += size


def columns(rows: PyTree, index: Int[Array, "..."]) -> Float[Array, "r ..."]:
    """Columns by coordinate; NaN if the coordinate is out of range."""
    dtype = common_dtype(rows)
    found = jnp.full((num_rows(rows), *index.shape), jnp.nan, dtype)
    leaves = jax.tree.leaves(rows)
    for leaf, (place, is_here) in zip(leaves, places(rows, index), strict=True):
        flat = _flat(leaf)
        if flat.shape[1]:
            found = jnp.where(is_here[None], flat[:, place].astype(dtype), found)
    return found


def _compensated(carry: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
    """One step of Kahan's summation: the sum, and its excess."""
    total, excess = carry
    term = term - excess
    new = total + term
    return new, (new - total) - term


def _is_sharded(leaf: Array) -> bool:
    """Whether an array is known to be on several devices."""
    if AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types:
        return True
    try:
        return len(leaf.sharding.device_set) > 1
    except AttributeError:  # traced: the compiler has not decided yet
        return False
