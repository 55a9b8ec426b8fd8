"""One step of M-FAC's window: write a row, then solve, as accurately as float32 allows.

A step usually takes a Cholesky factor of the small matrix. If an error bound shows that
this is not accurate enough, the step is repeated with eigenvectors and refinement.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from .._inverse.base import with_derivative_of
from .._inverse.woodbury import damped_gram, decompose
from .._vector import combine_blocks, common_dtype, dot, project_blocks, where

_MAX_REFINE = 6
_TOLERANCE = 0.1  # of half the digits: 3e-5 in float32


class Window(NamedTuple):
    """What U = n Gᵀ(sI + K)⁻¹eᵢ is computed from."""

    rows: PyTree  # G
    g: PyTree  # its row i, the newest gradient
    gram: Array  # K = G Gᵀ
    unit: Array  # eᵢ
    shift: Array  # s = nλ
    n: Array


@jax.jit
def write_and_solve(
    rows: PyTree, g: PyTree, gram: Array, i: Array, count: Array, damping: Array
) -> tuple[PyTree, PyTree, Array]:
    """Returns U = n Gᵀ(nλI + K)⁻¹eᵢ, n the count, and G and K with g as row i."""
    m = gram.shape[0]
    unit = (jnp.arange(m, dtype=i.dtype) == i).astype(gram.dtype)
    row = project_blocks(rows, g, m).astype(gram.dtype)
    row = jnp.where(unit == 1, dot(g, g).astype(gram.dtype), row)
    # This is i, but depends on the row: otherwise XLA writes first, into a copy.
    at = jnp.minimum(i, m - 1 + (row[0] > 0).astype(i.dtype))
    rows = jax.tree.map(
        lambda u, x: lax.dynamic_update_slice_in_dim(u, x[None], at, 0), rows, g
    )
    gram = lax.dynamic_update_slice(gram, row[None, :], (i, jnp.zeros_like(i)))
    gram = lax.dynamic_update_slice(gram, row[:, None], (jnp.zeros_like(i), i))

    n = count.astype(gram.dtype)
    s = n * damping
    known = _solve(lax.stop_gradient(Window(rows, g, gram, unit, s, n)))
    return with_derivative_of(_solve_anew, (rows, unit, s, n), known), rows, gram


# The error of u in float32. Entries of K are off by ε max K_jj at random, times
# √(d / 2¹⁶) for rows of d > 2¹⁶ entries. That moves c = (sI + K)⁻¹eᵢ, s = nλ, by
# (sI + K)⁻¹E c, and Gᵀ of that is at most
#
#     ε √m √(max K_jj / p) b,    b² = Σ_j c_j² K_jj,    p = the smallest pivot of sI + K
#
# since ‖Gᵀ(sI + K)⁻¹‖ <= (s + σ_min)^-½, which p^-½ estimates. This also bounds the
# rounding of Gᵀc itself, ε b, which is large when terms of c cancel, as c_j = -c_i =
# 1/2s do for equal gradients. It is compared with ‖Gᵀc‖ = √(cᵀKc), without empty rows.


def _solve(w: Window) -> PyTree:
    """U, not differentiable."""
    m, ε = w.gram.shape[0], float(jnp.finfo(common_dtype(w.rows)).eps)
    lower = jnp.linalg.cholesky(w.gram + w.shift * jnp.eye(m, dtype=w.gram.dtype))
    c = jsp.linalg.cho_solve((lower, True), w.unit)

    squares = jnp.diagonal(w.gram)
    # A square that overflowed would make c, and so every update, zero.
    is_finite = jnp.all(jnp.isfinite(squares))
    c = jnp.where(is_finite, c, jnp.nan)
    pivots = jnp.where(squares > 0, jnp.diagonal(lower) ** 2, jnp.inf)
    b = jnp.sqrt(jnp.sum(c**2 * squares))
    d = max([leaf.size for leaf in jax.tree.leaves(w.g)], default=0)
    ε_K = ε * max(1.0, d / 2**16) ** 0.5
    bound = ε_K * jnp.sqrt(m * jnp.max(squares) / jnp.min(pivots)) * b
    norm = jnp.sqrt(jnp.maximum(c @ (w.gram @ c), 0))
    is_accurate = bound <= _TOLERANCE * ε**0.5 * norm

    def by_cholesky(w: Window, c: Array) -> PyTree:
        return combine_blocks(c, w.rows)

    operands = (w, w.n * c)
    return _cond(~is_accurate & is_finite, _by_eigenvectors, by_cholesky, operands)


def _solve_anew(inputs: tuple[PyTree, Array, Array, Array]) -> PyTree:
    """U, by operations that JAX can differentiate: for derivatives only."""
    rows, unit, s, n = inputs
    return combine_blocks(n * jnp.linalg.solve(damped_gram(rows, s), unit), rows)


# `jax.vmap` turns a conditional into a selection, so both branches run in every step.
# Here a batch has one conditional for all its members, and so has a batch of batches.


def _cond(pred: Array, if_true: Any, if_false: Any, operands: Any) -> PyTree:
    """`lax.cond`, but a batch runs `if_true` only if one of its members needs it."""

    @custom_vmap
    def branch(pred: Array, operands: Any) -> PyTree:
        return lax.cond(pred, if_true, if_false, *operands)

    @branch.def_vmap
    def batched(size: int, is_batched: Any, pred: Array, operands: Any) -> Any:
        def select(pred: Array, operands: Any) -> PyTree:
            return where(pred, if_true(*operands), if_false(*operands))

        def plain(_: Array, operands: Any) -> PyTree:
            return if_false(*operands)

        axes = jax.tree.map(lambda here: 0 if here else None, is_batched)
        some, none = (jax.vmap(f, axes, axis_size=size) for f in (select, plain))
        result = _cond(jnp.any(pred), some, none, (pred, operands))
        return result, jax.tree.map(lambda _: True, result)

    return branch(pred, operands)


# Where K does not determine c, it still determines u = Gᵀc. With K = V diag(σ) Vᵀ:
#
# (i) Products with the window are taken about its newest row, Gᵀc = Hᵀc + (Σc) g with
#     hⱼ = gⱼ - g: what gradients have in common is subtracted before it is rounded.
#
# (ii) The part of c in eigenvectors V₀ of σ near zero, a = V₀(σ + s)⁻¹V₀ᵀeᵢ, is large.
#     Its t = Gᵀa vanishes if gradients are linearly dependent, and matters if they are
#     nearly so. It is left out if it is not larger than its rounding.
#
# (iii) c is refined by the residual of the window itself, eᵢ - s c - G Gᵀc, so that
#     rounding in K and V cancels.


def _by_eigenvectors(w: Window, _: Array) -> PyTree:
    """U, where the Cholesky factor is not accurate enough."""
    rows, g, K, unit, s, n = w
    m, ε = K.shape[0], float(jnp.finfo(common_dtype(rows)).eps)
    v, σ = decompose(K)
    is_large = σ > 8 * ε * σ[-1]

    def solve(r: Array, keep: Array) -> Array:
        return v @ jnp.where(keep, (v.T @ r) / (σ + s), 0)

    def transposed(c: Array) -> PyTree:
        return combine_blocks(c, rows, about=g)

    def residual(y: PyTree, c: Array) -> Array:
        return n * unit - s * c - project_blocks(rows, y, m, about=g).astype(σ.dtype)

    a = solve(n * unit, ~is_large)
    c = solve(n * unit, is_large) + a
    y, t = transposed(c - a), transposed(a)
    squares = jnp.diagonal(K) - 2 * (K @ unit) + 2 * (unit @ K @ unit)  # ‖hⱼ‖² + ‖g‖²
    rounding = 4 * ε * jnp.sqrt(jnp.sum(a**2 * squares))
    is_real = jnp.sqrt(dot(t, t)).astype(σ.dtype) > rounding
    keep = is_large | is_real
    y = jax.tree.map(lambda y, t: jnp.where(is_real, y + t, y), y, t)

    def is_falling(carry: tuple[PyTree, Array, Array, Array, Array]) -> Array:
        _, _, r, last, k = carry
        return (jnp.sum(r**2) < last / 4) & (k < _MAX_REFINE)

    def refine(carry: tuple[PyTree, Array, Array, Array, Array]) -> Any:
        y, c, r, _, k = carry
        z = solve(r, keep)
        y, c = jax.tree.map(jnp.add, y, transposed(z)), c + z
        return y, c, residual(y, c), jnp.sum(r**2), k + 1

    infinite, zero = jnp.full((), jnp.inf, σ.dtype), jnp.zeros((), jnp.int32)
    return lax.while_loop(is_falling, refine, (y, c, residual(y, c), infinite, zero))[0]
