"""Products of a low-rank inverse with its rows, without cancellation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._types import Params
from .._vector import (
    add,
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
from .inverse import WANTED, Inverse
from .woodbury import GramFactor, damped_gram


def solve_rows(inverse: Inverse, coefficients: Float[Array, " r"]) -> Params:
    """Returns P Uᵀc for the rows U of a low-rank curvature, without cancellation.

    (λI + UᵀU)⁻¹ Uᵀc = Uᵀ(λI + UUᵀ)⁻¹ c divides nothing by λ. In float32 it is accurate
    to about 1e-5, where `P.mv` of the same vector is off by eps/λ. If c is the i-th
    unit vector, this is P uᵢ: M-FAC's step for the gradient uᵢ √m in its window. The
    result is differentiable in c, λ and the rows.

    Args:
        inverse: `ok.invert(C, ok.Woodbury(), damping=λ)` of an `ok.LowRank` C.
        coefficients: c, one number per row.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> ok.solve_rows(P, jnp.array([1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)
    """
    check = Check("ok.solve_rows")
    check.instance(Inverse, WANTED, inverse=inverse)
    curvature, damping = split_damping(inverse.operator)
    factor = inverse.factor
    pair = f"`{type(curvature).__name__}` by `{type(inverse.solver).__name__}`"
    text = f"needs an inverse of `LowRank` by `ok.Woodbury`, got {pair}. Use `P.mv`."
    check.that(isinstance(factor, GramFactor), text)
    advice = "Pass one per row; for many vectors, use `jax.vmap`."
    check.shapes(advice, coefficients=(coefficients, factor.values.shape))
    known = _solve_rows(curvature.rows, factor, damping, coefficients)
    inputs = (curvature.rows, damping, coefficients)
    solved = with_derivative_of(_solve_rows_anew, inputs, known)
    return raise_if_failed(solved, inverse.operator, factor)


# In the eigenbasis UUᵀ = V diag(σ) Vᵀ, the result is UᵀV (Vᵀc / (σ + λ)). In float32,
# this has two problems:
#
# (i) Eigenvectors are off by eps, which mixes the parts of small and large σ. One step
#     of iterative refinement with the rows corrects this, separately for the part of c
#     where σ is zero to rounding and for the rest. It is not needed if the Gram matrix
#     has a wider dtype than the rows.
#
# (ii) The first of these parts, a = V₀V₀ᵀc, is a combination of rows that is zero for
#     equal rows and small for nearly equal ones. Dividing its terms by λ would give a
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
        y = add(y, combined(solve(damping, rest)))

    a = v @ (jnp.where(is_large, 0, damping / (sigma + damping)) * (v.T @ c))
    t = combined(a)
    if is_refined:
        t = subtract(t, combined(solve(0, gram_times(t))))
    rounding = 4 * eps * jnp.sqrt(jnp.sum(a**2) * sigma[-1])
    is_real = norm(t).astype(sigma.dtype) > rounding
    solved = axpy(jnp.where(is_real, 1 / damping, 0), t, y)
    return cast_like(solved, structure_of(rows, drop=1))


# For derivatives only: see `woodbury.py`.
def _solve_rows_anew(inputs: tuple[PyTree, Array, Array]) -> Params:
    rows, damping, c = inputs
    matrix = damped_gram(rows, damping)
    return combine(jnp.linalg.solve(matrix, c.astype(matrix.dtype)), rows)
