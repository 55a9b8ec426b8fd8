"""Stacked rows: a real matrix U of r rows as a pytree with r as each leaf's first axis.

Sums are accumulated in float32 or wider, without TF32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._types import wide_dtype
from .structure import common_dtype, explicit_sharding, replicated

_LONG = 1 << 19  # a row with more entries loses digits when added one by one


def num_rows(rows: PyTree) -> int:
    """r, the length of the leading axis; 0 for a tree without leaves."""
    leaves = jax.tree.leaves(rows)
    return leaves[0].shape[0] if leaves else 0


def zero_rows(num: int, tree: PyTree) -> PyTree:
    """`num` rows of zeros like `tree`, sharded like it."""

    def one(x: Array) -> Array:
        return jnp.broadcast_to(jnp.zeros_like(x), (num, *x.shape))

    return jax.tree.map(one, tree)


def project(rows: PyTree, x: PyTree) -> Float[Array, " r"]:
    """Ux: the dot product of each row with x."""
    dtype = common_dtype((rows, x))
    dots = jax.tree.map(lambda u, a: contract(u, a, 1), rows, x)
    return sum_of(dtype, (num_rows(rows),), dots)


def combine(c: Float[Array, " r"], rows: PyTree) -> PyTree:
    """Uᵀc: the combination of rows with coefficients c, in the rows' dtypes."""

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
    """UUᵀ: the dot products of all pairs of rows."""
    r = num_rows(rows)
    dots = jax.tree.map(lambda u: _product(u, u, 1, 1), rows)
    return sum_of(common_dtype(rows), (r, r), dots)


def contract(x: Array, y: Array, num_kept: int) -> Array:
    """Contracts all axes of x after the first `num_kept` with all axes of y."""
    x, y = jnp.asarray(x), jnp.asarray(y)

    def plain(x: Array, y: Array) -> Array:
        return _product(x, y, num_kept, 0)

    # On CPU, XLA's matrix-vector product adds the entries of a row one by one, which in
    # float32 is off by 1e-3 for rows of 2²⁴. Its product of two vectors does not, and
    # its product of two matrices adds blocks.
    def in_pairs(x: Array, y: Array) -> Array:
        return _product(x, jnp.stack([y, y]), num_kept, 1)[..., 0]

    if num_kept == 0 or y.size < _LONG:
        return plain(x, y)
    if x.shape[0] == 1:
        return contract(x[0], y, 0)[None]
    return lax.platform_dependent(x, y, cpu=in_pairs, default=plain)


def _product(x: Array, y: Array, num_kept: int, num_free: int) -> Array:
    """Contracts all axes but the first `num_kept` of x and `num_free` of y."""
    axes = tuple(range(num_kept, x.ndim)), tuple(range(num_free, y.ndim))
    return lax.dot_general(
        x,
        y,
        (axes, ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=common_dtype((x, y)),
        out_sharding=replicated(x, num_kept + num_free),
    )


def sum_of(dtype: Any, shape: tuple[int, ...], terms: PyTree) -> Array:
    """The sum of the leaves; zeros of `shape` if there are none."""
    terms = [term.astype(dtype) for term in jax.tree.leaves(terms)]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)
