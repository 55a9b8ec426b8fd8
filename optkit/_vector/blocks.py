"""Products with stacked rows that cast only a block of rows to float32 at a time.

CPUs have no products of narrow floats. XLA would cast all rows at once, into a copy
twice their size.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._types import wide_dtype
from .rows import combine, contract, sum_of
from .structure import common_dtype

_BLOCK = 1 << 18  # entries that are cast to float32 at a time


def project_blocks(
    rows: PyTree, x: PyTree, r: int, about: PyTree | None = None
) -> Float[Array, " r"]:
    """Returns Ux in float32 or wider, without a float32 copy of narrow rows.

    With a row w in `about`, it computes (U - 1wᵀ)x + 1(wᵀx), so that what the rows
    share with w is subtracted before rounding. `r` is the number of rows, which an
    empty tree lacks.
    """

    def projected(u: Array, a: Array, w: Array | None = None) -> Array:
        if wide_dtype(u) == u.dtype and w is None:
            return contract(u, jnp.asarray(a, u.dtype), 1)

        def fill(dots: Array, block: Array, start: Any, _: Any) -> Array:
            new = contract(block, a, 1)
            return lax.dynamic_update_slice_in_dim(dots, new, start, 0)

        a = jnp.asarray(a).astype(wide_dtype(u))
        near = 0 if w is None else contract(w.astype(a.dtype), a, 0)
        zeros = jnp.zeros_like(contract(u[:1], a, 1), shape=r)
        return near + _over_blocks(fill, zeros, u, w)

    others = () if about is None else (about,)
    dots = jax.tree.map(projected, rows, x, *others)
    return sum_of(common_dtype(rows), (r,), dots)


def combine_blocks(
    c: Float[Array, " r"], rows: PyTree, about: PyTree | None = None
) -> PyTree:
    """Returns Uᵀc in float32 or wider, without a float32 copy of narrow rows.

    With a row w in `about`, it computes (U - 1wᵀ)ᵀc + (1ᵀc)w, as `project_blocks`.
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
        return block if about is None else block - about.astype(block.dtype)[None]

    def step(i: Any, result: Array) -> Array:
        # The barrier ties u to i. Otherwise XLA casts all rows outside the loop.
        here, i = lax.optimization_barrier((u, i))
        start = jnp.minimum(i * size, r - size)  # the last block may overlap
        is_new = start + jnp.arange(size) >= i * size
        return body(
            result, one(lax.dynamic_slice_in_dim(here, start, size)), start, is_new
        )

    if count == 1:
        return body(result, one(u), 0, True)
    return lax.fori_loop(0, count, step, result)
