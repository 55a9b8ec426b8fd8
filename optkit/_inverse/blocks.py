"""Woodbury's identity in each block of a block-diagonal low-rank curvature.

A block of B coordinates has the rows U_b, its slice of U, and is factorised by

    B >= r    Cholesky of λI + U_b U_bᵀ, r x r, and Woodbury's identity
    B < r     Cholesky of λI + U_bᵀ U_b, B x B, which is the block itself
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float, PyTree

from .._curvature.low_rank import BlockLowRank
from .._types import Params, wide_dtype
from .._vector import common_dtype
from .base import Index
from .columns import places, small_dtype

_HIGHEST = lax.Precision.HIGHEST


class BlockFactor(NamedTuple):
    """For each leaf, the lower Cholesky factors of its blocks, stacked."""

    lower: PyTree


def factor_blocks(curvature: BlockLowRank, damping: Float[Array, ""]) -> BlockFactor:
    """Factorises every block, vmapped over the blocks of a leaf."""

    def factor(u: Array) -> Array:
        u = u.astype(small_dtype())
        pair = (u.T, u) if _is_dense(u) else (u, u.T)
        matrix = jnp.matmul(*pair, precision=_HIGHEST)
        eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return jnp.linalg.cholesky(matrix + damping.astype(matrix.dtype) * eye)

    return BlockFactor(curvature.over_blocks(factor))


def block_solve(
    curvature: BlockLowRank, factor: BlockFactor, damping: Array, vector: Params
) -> Params:
    """(λI + U_bᵀU_b)⁻¹ x_b in each block."""

    def solve(u: Array, lower: Array, x: Array) -> Array:
        u, wide = u.astype(lower.dtype), x.astype(lower.dtype)
        if _is_dense(u):
            return cho_solve((lower, True), wide).astype(x.dtype)
        y = cho_solve((lower, True), jnp.matmul(u, wide, precision=_HIGHEST))
        near = jnp.matmul(y, u, precision=_HIGHEST)
        return ((wide - near) / damping.astype(wide.dtype)).astype(x.dtype)

    split = curvature.split(vector)
    return curvature.join(curvature.over_blocks(solve, factor.lower, split))


def block_diagonal(
    curvature: BlockLowRank, factor: BlockFactor, damping: Array
) -> Params:
    """The diagonal of the inverse of each block."""

    def diagonal(u: Array, lower: Array) -> Array:
        w = solve_triangular(lower, _side(u, lower.dtype), lower=True)
        squares = jnp.sum(w**2, axis=0)
        if not _is_dense(u):
            c = jnp.sum(u.astype(squares.dtype) ** 2, axis=0)
            squares = at_least_jensen(1 - squares, c, damping)
        return squares.astype(wide_dtype(u))

    return curvature.join(curvature.over_blocks(diagonal, factor.lower))


def at_least_jensen(rest: Array, c: Array, damping: Array) -> Array:
    """d / λ, or 1 / (c + λ) where rounding leaves less: (A⁻¹)_jj >= 1 / A_jj."""
    damping = damping.astype(rest.dtype)
    return jnp.maximum(rest / damping, 1 / (c.astype(rest.dtype) + damping))


def block_entry(
    curvature: BlockLowRank, factor: BlockFactor, damping: Array, a: Index, b: Index
) -> Float[Array, "..."]:
    """Entries of the inverse: zero between blocks, NaN out of range."""
    rows, size = curvature.rows, curvature.in_size()
    found = jnp.where((a >= 0) & (a < size) & (b >= 0) & (b < size), 0, jnp.nan)
    found = found.astype(common_dtype(rows))
    leaves = map(jax.tree.leaves, (rows, factor.lower))
    parts = zip(*leaves, places(rows, a), places(rows, b), strict=True)
    for u, lower, (place_a, is_a), (place_b, is_b) in parts:
        u = u.reshape(u.shape[0], math.prod(u.shape[1:]))
        length = max(min(curvature.block_size, u.shape[1]), 1)
        is_here = is_a & is_b & (place_a // length == place_b // length)
        if u.size or len(lower):
            value = _leaf_entry(u, length, lower, damping, place_a, place_b)
            found = jnp.where(is_here, value.astype(found.dtype), found)
    return found


def _leaf_entry(
    u: Array, length: int, lower: Array, damping: Array, a: Array, b: Array
) -> Array:
    def one(a: Array, b: Array) -> Array:
        block = a // length
        places = block * length + jnp.arange(length)
        columns = u.at[:, places].get(mode="fill", fill_value=0)
        side = _side(columns, lower.dtype)
        pair = jnp.stack([side[:, a % length], side[:, b % length]], axis=1)
        w = solve_triangular(lower[block], pair, lower=True)
        inner = jnp.sum(w[:, 0] * w[:, 1])
        if _is_dense(columns):
            return inner
        return (jnp.where(a == b, 1, 0) - inner) / damping.astype(inner.dtype)

    return jax.vmap(one)(a.reshape(-1), b.reshape(-1)).reshape(a.shape)


def _side(u: Array, dtype: Any) -> Array:
    """I or U_b: the dot products of the columns of L⁻¹ times it give the entries."""
    return jnp.eye(u.shape[-1], dtype=dtype) if _is_dense(u) else u.astype(dtype)


def _is_dense(u: Array) -> bool:
    """Whether the block itself is factorised: it has fewer coordinates than rows."""
    return u.shape[-1] < u.shape[0]
