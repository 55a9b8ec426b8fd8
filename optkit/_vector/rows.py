"""Tall matrices of stacked rows.

A tall matrix U of r rows is a pytree whose leaves have a leading axis r. Sums are
accumulated in float32 or wider, without TF32. Trees are real.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._types import wide_dtype
from .structure import common_dtype, explicit_sharding, replicated

_LONG = 1 << 19  # entries of a row that are too many to be added one by one


def num_rows(rows: PyTree) -> int:
    """r, the length of the leading axis that all leaves share; 0 without leaves."""
    leaves = jax.tree.leaves(rows)
    return leaves[0].shape[0] if leaves else 0


def project(rows: PyTree, x: PyTree) -> Float[Array, " r"]:
    """Ux: the dot of each row with x."""
    dtype = common_dtype((rows, x))
    dots = jax.tree.map(lambda u, a: contract(u, a, 1), rows, x)
    return sum_of(dtype, (num_rows(rows),), dots)


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
    return sum_of(common_dtype(rows), (r, r), dots)


def contract(x: Array, y: Array, num_kept: int) -> Array:
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
            out_sharding=replicated(x, num_kept + num_free),
        )

    # XLA's product of a matrix and a vector on CPU adds the entries of a row one by
    # one: in float32 it is off by 1e-3 for rows of 2²⁴. That of two vectors does not,
    # and that of two matrices adds blocks.
    def in_pairs(x: Array, y: Array) -> Array:
        return product(x, jnp.stack([y, y]), 1)[..., 0]

    if num_kept == 0 or y.size < _LONG:
        return product(x, y)
    if x.shape[0] == 1:
        return contract(x[0], y, 0)[None]
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
        out_sharding=replicated(u, 2),
    )


def sum_of(dtype: Any, shape: tuple[int, ...], terms: PyTree) -> Array:
    """The sum of the leaves, of which there may be none."""
    terms = [term.astype(dtype) for term in jax.tree.leaves(terms)]
    return functools.reduce(jnp.add, terms) if terms else jnp.zeros(shape, dtype)
