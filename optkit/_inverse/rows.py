"""Products of a low-rank inverse with combinations of its rows: nothing cancels."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._types import Params
from .._vector import (
    axpy,
    cast_like,
    combine,
    combine_blocks,
    common_dtype,
    norm,
    num_rows,
    project_blocks,
    structure_of,
    subtract,
)
from .base import raise_if_failed, with_derivative_of
from .inverse import Inverse, check_inverse
from .woodbury import GramFactor, damped_gram


def solve_rows(inverse: Inverse, coefficients: Float[Array, " r"]) -> Params:
    """P Uᵀc for the rows U of a low-rank curvature, without cancellation.

    (λI + UᵀU)⁻¹ Uᵀc = Uᵀ(λI + UUᵀ)⁻¹ c, so nothing is divided by λ: in float32 it is
    right to about 1e-5 where `P.mv` of the same vector is off by eps/λ. With c the
    i-th unit vector it is P uᵢ: M-FAC's step for the gradient uᵢ √m in its window.

    Args:
        inverse: `ok.invert(C, ok.Woodbury(), damping=λ)` of an `ok.LowRank` C.
        coefficients: c, one number for each row.

    Returns:
        A pytree like the params, differentiable in c, λ and the rows.

    Raises:
        ValueError: for an inverse by another method or of blocks, or another number
            of coefficients than rows.
        TypeError: for what is no `ok.Inverse`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> ok.solve_rows(P, jnp.array([1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)
    """
    check = Check("ok.solve_rows")
    check_inverse(check, inverse)
    curvature, damping = split_damping(inverse.operator)
    factor = inverse.factor
    pair = f"`{type(curvature).__name__}` by `{type(inverse.solver).__name__}`"
    text = f"needs an inverse of `LowRank` by `ok.Woodbury`, got {pair}. Use `P.mv`."
    check.that(isinstance(factor, GramFactor), text)
    advice = "Pass one for each row; for many, `jax.vmap` it."
    check.shapes(advice, coefficients=(coefficients, factor.values.shape))
    known = _solve_rows(curvature.rows, factor, damping, coefficients)
    inputs = (curvature.rows, damping, coefficients)
    solved = with_derivative_of(_solve_rows_anew, inputs, known)
    return raise_if_failed(solved, inverse.operator, factor)


# In the eigenbasis UUᵀ = V diag(σ) Vᵀ, the result is UᵀV (Vᵀc / (σ + λ)). Two things go
# wrong with that in float32:
#
# (i) Eigenvectors are off by eps, so the parts of small σ mix with those of large ones.
#     One step of iterative refinement, with products by the rows, takes that out: for
#     the part of c where σ is zero to rounding, which is set apart, and for the rest.
#     Not needed where the Gram matrix is wider than the rows.
#
# (ii) The part set apart, a = V₀V₀ᵀc, is a combination of rows that vanishes if rows
#     are equal and is small if they are nearly so. Divided by λ, it would be a
#     difference of large terms. So t = Uᵀa is formed first, and left out if it is no
#     larger than its rounding, eps ‖a‖ √σ_max.


def _solve_rows(
    rows: PyTree, factor: GramFactor, damping: Array, c: Float[Array, " r"]
) -> Params:
    v, sigma = factor.vectors, factor.values
    damping, c = damping.astype(sigma.dtype), c.astype(sigma.dtype)
    eps = float(jnp.finfo(common_dtype(rows)).eps)  # narrow rows are exact in float32
    is_refined = eps <= float(jnp.finfo(sigma.dtype).eps)
    is_large = sigma > 8 * eps * sigma[-1]  # an eigenvalue is off by some eps σ_max

    def solve(shift: Any, c: Array) -> Array:
        damped = jnp.where(is_large, sigma + shift, 1)
        return v @ (jnp.where(is_large, 1 / damped, 0) * (v.T @ c))

    def gram_times(y: Params) -> Array:
        return project_blocks(rows, y, num_rows(rows)).astype(sigma.dtype)

    def combined(c: Array) -> Params:
        return combine_blocks(c, rows)

    near_null = v @ (jnp.where(is_large, 0, 1) * (v.T @ c))
    if is_refined:
        near_null -= solve(0, gram_times(combined(near_null)))
    d = solve(damping, c - near_null)
    y = combined(d)
    if is_refined:
        rest = c - near_null - damping * d - gram_times(y)
        y = jax.tree.map(jnp.add, y, combined(solve(damping, rest)))

    a = v @ (jnp.where(is_large, 0, damping / (sigma + damping)) * (v.T @ c))
    t = combined(a)
    if is_refined:
        t = subtract(t, combined(solve(0, gram_times(t))))
    rounding = 4 * eps * jnp.sqrt(jnp.sum(a**2) * sigma[-1])
    is_real = norm(t).astype(sigma.dtype) > rounding
    solved = axpy(jnp.where(is_real, 1 / damping, 0), t, y)
    return cast_like(solved, structure_of(rows, drop=1))


# By what JAX differentiates well, for derivatives only: see `woodbury.py`.


def _solve_rows_anew(inputs: tuple[PyTree, Array, Array]) -> Params:
    rows, damping, c = inputs
    matrix = damped_gram(rows, damping)
    return combine(jnp.linalg.solve(matrix, c.astype(matrix.dtype)), rows)
