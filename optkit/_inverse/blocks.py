"""Woodbury's identity in each block of a block-diagonal low-rank curvature.

A block of B coordinates has the rows U_b, its slice of U, and is factorised by

    B >= r    Cholesky of λI + U_b U_bᵀ, r x r, and Woodbury's identity
    B < r     Cholesky of λI + U_bᵀ U_b, B x B, which is the block itself
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from .._curvature.low_rank import BlockLowRank
from .._types import Params, wide_dtype
from .._vector import common_dtype
from .base import Index
from .columns import places, small_dtype

_HIGHEST = lax.Precision.HIGHEST


class BlockFactor(NamedTuple):
    """For each leaf, the lower Cholesky factors of its blocks, stacked."""

    lower: list[Array]


def factor_blocks(curvature: BlockLowRank, damping: Float[Array, ""]) -> BlockFactor:
    """Factorises every block, vmapped over the blocks of a leaf."""
    blocks = jax.tree.leaves(curvature.split(curvature.rows, 1))
    return BlockFactor([_factor_leaf(u, damping) for u in blocks])


@jax.jit
def _factor_leaf(u: Array, damping: Array) -> Array:
    def factor(u: Array) -> Array:
        u = u.astype(small_dtype())
        pair = (u.T, u) if _is_dense(u) else (u, u.T)
        matrix = jnp.matmul(*pair, precision=_HIGHEST)
        eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        return jnp.linalg.cholesky(matrix + damping.astype(matrix.dtype) * eye)

    return jax.vmap(factor, in_axes=1)(u)


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

    return _per_block(solve, curvature, factor, vector)


def block_diagonal(
    curvature: BlockLowRank, factor: BlockFactor, damping: Array
) -> Params:
    """The diagonal of the inverse of each block."""

    def diagonal(u: Array, lower: Array, like: Array) -> Array:
        w = solve_triangular(lower, _side(u, lower.dtype), lower=True)
        squares = jnp.sum(w**2, axis=0)
        if not _is_dense(u):
            squares = (1 - squares) / damping.astype(squares.dtype)
        return squares.astype(wide_dtype(like))

    likes = jax.tree.map(lambda u: u[0], curvature.rows)
    return _per_block(diagonal, curvature, factor, likes)


def block_entry(
    curvature: BlockLowRank, factor: BlockFactor, damping: Array, a: Index, b: Index
) -> Float[Array, "..."]:
    """Entries of the inverse: zero between blocks, NaN out of range."""
    rows, size = curvature.rows, curvature.in_size()
    found = jnp.where((a >= 0) & (a < size) & (b >= 0) & (b < size), 0, jnp.nan)
    found = found.astype(common_dtype(rows))
    blocks = jax.tree.leaves(curvature.split(rows, 1))
    parts = zip(blocks, factor.lower, places(rows, a), places(rows, b), strict=True)
    for u, lower, (place_a, is_a), (place_b, is_b) in parts:
        _, num_blocks, length = u.shape
        is_here = is_a & is_b & (place_a // length == place_b // length)
        if num_blocks:
            value = _leaf_entry(u, lower, damping, place_a, place_b)
            found = jnp.where(is_here, value.astype(found.dtype), found)
    return found


def _leaf_entry(u: Array, lower: Array, damping: Array, a: Array, b: Array) -> Array:
    length = u.shape[2]

    def one(a: Array, b: Array) -> Array:
        block = a // length
        side = _side(u[:, block], lower.dtype)
        pair = jnp.stack([side[:, a % length], side[:, b % length]], axis=1)
        w = solve_triangular(lower[block], pair, lower=True)
        inner = jnp.sum(w[:, 0] * w[:, 1])
        if _is_dense(u):
            return inner
        return (jnp.where(a == b, 1, 0) - inner) / damping.astype(inner.dtype)

    return jax.vmap(one)(a.reshape(-1), b.reshape(-1)).reshape(a.shape)


def _per_block(
    f: Any, curvature: BlockLowRank, factor: BlockFactor, vector: Params
) -> Params:
    """Applies f(rows, factor, vector) to each block, and joins the results."""
    leaves, treedef = jax.tree.flatten(curvature.split(vector))
    rows = jax.tree.leaves(curvature.split(curvature.rows, 1))
    over_blocks = jax.vmap(f, in_axes=(1, 0, 0))
    blocks = map(over_blocks, rows, factor.lower, leaves)
    return curvature.join(treedef.unflatten(blocks))


def _side(u: Array, dtype: Any) -> Array:
    """I or U_b: the dot products of the columns of L⁻¹ times it give the entries."""
    return jnp.eye(u.shape[-1], dtype=dtype) if _is_dense(u) else u.astype(dtype)


def _is_dense(u: Array) -> bool:
    """Whether the block itself is factorised: it has fewer coordinates than rows."""
    return u.shape[-1] < u.shape[0]
