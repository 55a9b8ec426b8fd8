"""One step of M-FAC's window: write a row, solve for it, to the digits float32 has.

The usual step is a Cholesky factor of the small matrix. Where an error bound says that
this is not accurate, because gradients nearly repeat and the damping is tiny, the step
is done again with care.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, PyTree

from .._inverse.base import with_derivative_of
from .._inverse.woodbury import damped_gram, decompose
from .._vector import combine_blocks, common_dtype, dot, project_blocks

_MAX_REFINE = 6
_TOLERANCE = 0.1  # of half the digits: 3e-5 in float32


# The error of u in float32. Entries of K are off by ε max K_jj at random, for rows of
# more than 2¹⁶ entries by √(n / 2¹⁶) times that, which moves c = (sI + K)⁻¹eᵢ, s = mλ,
# by (sI + K)⁻¹E c, and Gᵀ of that is at most
#
#     ε √m √(max K_jj / p) b,    b² = Σ_j c_j² K_jj,    p = the smallest pivot of sI + K
#
# since ‖Gᵀ(sI + K)⁻¹‖ <= (s + σ_min)^-½, for which p^-½ stands. It also bounds the
# rounding of Gᵀc itself, ε b: large when terms of c cancel, as c_j = -c_i = 1/2s do
# for equal gradients. It is compared with ‖Gᵀc‖ = √(cᵀKc). An empty row counts nowhere.


@jax.jit
def write_and_solve(
    rows: PyTree, g: PyTree, gram: Array, i: Array, count: Array, damping: Array
) -> tuple[PyTree, PyTree, Array]:
    """U = n Gᵀ(nλI + K)⁻¹eᵢ, n the count, and G and K with g as the row i."""
    m = gram.shape[0]
    unit = (jnp.arange(m, dtype=i.dtype) == i).astype(gram.dtype)
    row = project_blocks(rows, g, m).astype(gram.dtype)
    row = jnp.where(unit == 1, dot(g, g).astype(gram.dtype), row)
    # The same i, but known after the row: else XLA writes first, into a copy.
    at = jnp.minimum(i, m - 1 + (row[0] > 0).astype(i.dtype))
    rows = jax.tree.map(
        lambda u, x: lax.dynamic_update_slice_in_dim(u, x[None], at, 0), rows, g
    )
    gram = lax.dynamic_update_slice(gram, row[None, :], (i, jnp.zeros_like(i)))
    gram = lax.dynamic_update_slice(gram, row[:, None], (jnp.zeros_like(i), i))

    n = count.astype(gram.dtype)
    shift = n * damping
    inputs = (rows, unit, shift, n)
    known = _solve(lax.stop_gradient((rows, g, gram, unit, shift, n)))
    return with_derivative_of(_solve_anew, inputs, known), rows, gram


def _solve(operands: tuple[Any, ...]) -> PyTree:
    """U = n Gᵀ(sI + K)⁻¹eᵢ, not differentiable."""
    rows, g, gram, unit, shift, n = operands
    m, ε = gram.shape[0], float(jnp.finfo(common_dtype(rows)).eps)
    lower = jnp.linalg.cholesky(gram + shift * jnp.eye(m, dtype=gram.dtype))
    c = jsp.linalg.cho_solve((lower, True), unit)

    squares = jnp.diagonal(gram)
    # A square that overflowed would make c, and so every update, zero.
    is_finite = jnp.all(jnp.isfinite(squares))
    c = jnp.where(is_finite, c, jnp.nan)
    pivots = jnp.where(squares > 0, jnp.diagonal(lower) ** 2, jnp.inf)
    b = jnp.sqrt(jnp.sum(c**2 * squares))
    longest = max([leaf.size for leaf in jax.tree.leaves(g)], default=0)
    ε_K = ε * max(1.0, longest / 2**16) ** 0.5
    bound = ε_K * jnp.sqrt(m * jnp.max(squares) / jnp.min(pivots)) * b
    norm = jnp.sqrt(jnp.maximum(c @ (gram @ c), 0))
    is_accurate = bound <= _TOLERANCE * ε**0.5 * norm

    def by_cholesky(rows: PyTree, c: Array, *_: Any) -> PyTree:
        return combine_blocks(c, rows)

    def by_eigenvectors(rows: PyTree, _: Array, *others: Any) -> PyTree:
        return _by_eigenvectors(rows, *others)

    is_doubtful = ~is_accurate & is_finite
    operands = (rows, n * c, g, gram, unit, shift, n)
    return _cond(is_doubtful, by_eigenvectors, by_cholesky, operands)


def _solve_anew(inputs: tuple[PyTree, Array, Array, Array]) -> PyTree:
    """The same by what JAX differentiates, for derivatives only."""
    rows, unit, shift, n = inputs
    return combine_blocks(n * jnp.linalg.solve(damped_gram(rows, shift), unit), rows)


# Under `jax.vmap` a conditional becomes a selection, and both sides run in every step.
# Here the batch has one conditional of its own, and a batch of batches too.


def _cond(
    pred: Array,
    if_true: Callable[..., PyTree],
    if_false: Callable[..., PyTree],
    operands: tuple[PyTree, ...],
) -> PyTree:
    """`lax.cond`, but a batch runs `if_true` only if one of its members needs it."""

    @custom_vmap
    def branch(pred: Array, operands: tuple[PyTree, ...]) -> PyTree:
        return lax.cond(pred, if_true, if_false, *operands)

    @branch.def_vmap
    def branch_of_batch(
        size: int, is_batched: Any, pred: Array, operands: tuple[PyTree, ...]
    ) -> tuple[PyTree, PyTree]:
        def select(pred: Array, operands: tuple[PyTree, ...]) -> PyTree:
            pair = if_true(*operands), if_false(*operands)
            return jax.tree.map(lambda x, y: jnp.where(pred, x, y), *pair)

        def plain(_: Array, operands: tuple[PyTree, ...]) -> PyTree:
            return if_false(*operands)

        axes = jax.tree.map(lambda here: 0 if here else None, is_batched)
        some, none = (jax.vmap(f, axes, axis_size=size) for f in (select, plain))
        result = _cond(jnp.any(pred), some, none, (pred, operands))
        return result, jax.tree.map(lambda _: True, result)

    return branch(pred, operands)


# Where K does not determine c, it still determines u = Gᵀc. With K = V diag(σ) Vᵀ:
#
# (i) products with the window are about its newest row, Gᵀc = Hᵀc + (Σc) g with
#     hⱼ = gⱼ - g: what gradients have in common is subtracted before it is rounded.
#
# (ii) The part of c in eigenvectors V₀ of σ near zero, a = V₀(σ + s)⁻¹V₀ᵀeᵢ, is large.
#     Its t = Gᵀa vanishes if gradients depend on each other and is real if they only
#     nearly do. It is left out if it is no larger than its rounding.
#
# (iii) c is refined by what the window itself says is left over, eᵢ - s c - G Gᵀc, so
#     that rounding in K and V cancels.


def _by_eigenvectors(
    rows: PyTree, g: PyTree, gram: Array, unit: Array, shift: Array, n: Array
) -> PyTree:
    """U = n Gᵀ(sI + K)⁻¹eᵢ where Cholesky's factor is not accurate enough."""
    m, ε = gram.shape[0], float(jnp.finfo(common_dtype(rows)).eps)
    v, σ = decompose(gram)
    is_large = σ > 8 * ε * σ[-1]

    def solve(r: Array, keep: Array) -> Array:
        return v @ jnp.where(keep, (v.T @ r) / (σ + shift), 0)

    def transposed(c: Array) -> PyTree:
        return combine_blocks(c, rows, about=g)

    def left_over(y: PyTree, c: Array) -> Array:
        dots = project_blocks(rows, y, m, about=g)
        return n * unit - shift * c - dots.astype(σ.dtype)

    a = solve(n * unit, ~is_large)
    c = solve(n * unit, is_large) + a
    y, t = transposed(c - a), transposed(a)
    squares = jnp.diagonal(gram) - 2 * (gram @ unit) + 2 * (unit @ gram @ unit)
    rounding = 4 * ε * jnp.sqrt(jnp.sum(a**2 * squares))  # of ‖hⱼ‖² + ‖g‖²
    is_real = jnp.sqrt(dot(t, t)).astype(σ.dtype) > rounding
    keep = is_large | is_real
    y = jax.tree.map(lambda y, t: jnp.where(is_real, y + t, y), y, t)

    def goes_on(carry: tuple[PyTree, Array, Array, Array, Array]) -> Array:
        _, _, left, last, k = carry
        return (jnp.sum(left**2) < last / 4) & (k < _MAX_REFINE)

    def refine(carry: tuple[PyTree, Array, Array, Array, Array]) -> Any:
        y, c, left, _, k = carry
        z = solve(left, keep)
        y, c = jax.tree.map(jnp.add, y, transposed(z)), c + z
        return y, c, left_over(y, c), jnp.sum(left**2), k + 1

    infinite, zero = jnp.full((), jnp.inf, σ.dtype), jnp.zeros((), jnp.int32)
    start = y, c, left_over(y, c), infinite, zero
    return lax.while_loop(goes_on, refine, start)[0]
