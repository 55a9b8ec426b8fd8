"""Columns of a tall matrix of stacked rows: by coordinate, and in chunks.

The rows may fill most of the memory, so what is computed from all columns in another
precision goes over a chunk of them at a time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Float, Int, PyTree

from .._vector import common_dtype, gram, num_rows

_CHUNK = 2048  # columns


def small_dtype() -> Any:
    """The dtype for r x r matrices: float64 where JAX has it, else float32."""
    return jnp.result_type(float)


def accurate_gram(rows: PyTree) -> Float[Array, "r r"]:
    """UUᵀ, rounded as if summed in twice the precision.

    In float64 where JAX has it; else in float32 over chunks of columns, whose sums are
    compensated (Kahan). A product that sums all columns in float32 is off by more than
    the damping when rows are nearly parallel.

    Rows that are sharded over devices keep to the plain product: slicing would gather
    them.

    Returns:
        The r x r matrix, in `small_dtype()`.
    """
    if any(_is_sharded(leaf) for leaf in jax.tree.leaves(rows)):
        return gram(rows).astype(small_dtype())
    return _chunked_gram(rows)


@jax.jit
def _chunked_gram(rows: PyTree) -> Array:
    dtype, r = small_dtype(), num_rows(rows)

    def product(u: Array) -> Array:
        u = u.astype(dtype)
        return lax.dot_general(
            u, u, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST
        )

    def leaf_gram(carry: tuple[Array, Array], u: Array) -> tuple[Array, Array]:
        flat = u.reshape(r, math.prod(u.shape[1:]))  # r may be 0
        count, rest = divmod(flat.shape[1], _CHUNK)

        def add(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            chunk = lax.dynamic_slice_in_dim(flat, i * _CHUNK, _CHUNK, 1)
            return _compensated(carry, product(chunk))

        carry = lax.fori_loop(0, count, add, carry) if count else carry
        return _compensated(carry, product(flat[:, -rest:])) if rest else carry

    zeros = jnp.zeros((r, r), dtype)
    total, _ = functools.reduce(leaf_gram, jax.tree.leaves(rows), (zeros, zeros))
    return total


def column_squares(matrix: Float[Array, "k r"], rows: PyTree) -> PyTree:
    """Σ_i (MU)_ij² for each column j, as a pytree like one row, without forming MU."""
    r = num_rows(rows)

    def squares(flat: Array) -> Array:
        mixed = jnp.matmul(
            matrix, flat.astype(matrix.dtype), precision=lax.Precision.HIGHEST
        )
        return jnp.sum(mixed**2, axis=0)

    def leaf_squares(u: Array) -> Array:
        return by_chunks(squares, u.reshape(r, -1)).reshape(u.shape[1:])

    return jax.tree.map(leaf_squares, rows)


def by_chunks(f: Callable[[Array], Array], flat: Float[Array, "r n"]) -> Array:
    """F on all columns, a chunk at a time; f maps (r, k) to (..., k)."""
    n = flat.shape[1]
    if n <= _CHUNK:
        return f(flat)
    out = jax.eval_shape(f, jax.ShapeDtypeStruct((flat.shape[0], _CHUNK), flat.dtype))

    def fill(i: Any, result: Array) -> Array:
        start = jnp.minimum(i * _CHUNK, n - _CHUNK)  # the last chunk may overlap
        chunk = f(lax.dynamic_slice_in_dim(flat, start, _CHUNK, 1))
        return lax.dynamic_update_slice_in_dim(result, chunk, start, result.ndim - 1)

    empty = jnp.zeros((*out.shape[:-1], n), out.dtype)
    return lax.fori_loop(0, -(-n // _CHUNK), fill, empty)


def columns(rows: PyTree, index: Int[Array, "..."]) -> Float[Array, "r ..."]:
    """Columns by coordinate, counted leaf after leaf; NaN for one out of range."""
    r, dtype = num_rows(rows), common_dtype(rows)
    found = jnp.full((r, *index.shape), jnp.nan, dtype)
    start = 0
    for leaf in jax.tree.leaves(rows):
        size = math.prod(leaf.shape[1:])
        is_here = (index >= start) & (index < start + size)
        place = jnp.clip(index - start, 0, max(size - 1, 0))
        if size:
            taken = leaf.reshape(r, size)[:, place].astype(dtype)
            found = jnp.where(is_here, taken, found)
        start += size
    return found


def identity_entries(a: Array, b: Array, dtype: Any) -> Array:
    """δ_ab."""
    return (a == b).astype(dtype)


def _compensated(carry: tuple[Array, Array], term: Array) -> tuple[Array, Array]:
    """One step of Kahan's summation: the sum, and what it is too large by."""
    total, excess = carry
    term = term - excess
    new = total + term
    return new, (new - total) - term


def _is_sharded(leaf: Array) -> bool:
    """Whether an array is known to lie on several devices."""
    if AxisType.Explicit in jax.typeof(leaf).sharding.mesh.axis_types:
        return True
    try:
        return len(leaf.sharding.device_set) > 1
    except AttributeError:  # traced: what the compiler decides is not known
        return False
