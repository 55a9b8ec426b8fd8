"""Woodbury's identity: inverting low-rank curvature in the space of its rows.

M-FAC is this with one more trick, a Gram matrix that is kept up to date; the trick is
the optimizer's, the algebra is here. With U the r rows, C = UᵀU, and K = λI + UUᵀ:

    (λI + UᵀU)⁻¹ x   = (x - Uᵀ K⁻¹ U x) / λ      any x: cancels when x is near the rows
    (λI + UᵀU)⁻¹ Uᵀc = Uᵀ K⁻¹ c                  combinations of rows: nothing cancels

M-FAC weighs gradients gᵢ by 1/m; here that is in the rows, U = G/√m, so its K is this
one times m. Its recursions are an elimination of K in disguise: the same numbers, with
m steps in sequence where this has one decomposition.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .._curvature.low_rank import BlockLowRank, LowRank
from .._tree import combine, dot, gram, num_rows, project
from .._types import Params, wide_dtype
from .base import (
    AbstractExplicitInverse,
    Inverse,
    check_inverse,
    fit_for_use,
    split_damping,
    with_derivative_of,
)
from .blocks import BlockFactor, block_diagonal, block_entry, block_solve, factor_blocks
from .columns import (
    accurate_gram,
    by_chunks,
    column_squares,
    columns,
    identity_entries,
    small_dtype,
)
from .results import RESULTS, all_finite, first_of
from .vectors import add


class GramFactor(NamedTuple):
    """The eigendecomposition UUᵀ = V diag(σ) Vᵀ, for any λ."""

    vectors: Float[Array, "r r"]  # V, in columns
    values: Float[Array, " r"]  # σ >= 0, ascending
    whitened: PyTree  # (σ + λ)^-½ VᵀU, or None


class Woodbury(AbstractExplicitInverse):
    """The inverse of a damped low-rank curvature, by its r x r Gram matrix.

        (λI + UᵀU)⁻¹ x = (x - Uᵀ(λI + UUᵀ)⁻¹ U x) / λ

    For an `ok.LowRank` curvature, such as `ok.empirical_fisher(...)`, and for its
    `block_diagonal(B)`, where each block of B coordinates has its own. Factorising
    costs r² n multiplications once and holds r² numbers beside the rows; a product
    reads the rows twice. This is M-FAC's static algorithm.

    The Gram matrix is summed in twice the precision, and its eigenvalues taken rather
    than a Cholesky factor: equal rows, or a λ below the rounding of its entries, are
    no failure. λ must be positive.

    In float32 the difference above loses about eps/λ ‖x‖ to rounding. For x a
    combination of rows, as in an optimizer or an influence function, `ok.solve_rows`
    does not.

    Args:
        store_whitened: hold W = (λI + UUᵀ)^-½ U as well, as large as the rows. Then an
            entry of P costs O(r), and O(r²) without it.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> print(f"{P.entry(0, 0):.3f} {P.entry(0, 1):.3f}")
        0.375 -0.125

    Reference:
        Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356, section 3.1. Departs: (1)
        all rows at once, by one decomposition; (2) the weight 1/m is in the rows.
    """

    store_whitened: bool = eqx.field(static=True, default=False)

    def factorise(
        self, operator: lx.AbstractLinearOperator
    ) -> GramFactor | BlockFactor:
        """Decomposes UUᵀ, or factorises each block."""
        curvature, damping = _split(operator)
        if isinstance(curvature, BlockLowRank):
            return factor_blocks(curvature, damping)
        if not isinstance(curvature, LowRank):
            raise ValueError(
                f"`ok.Woodbury` needs a `LowRank` curvature, got "
                f"`{type(curvature).__name__}`. Sketch one with `ok.Nystrom(rank=...)`,"
                f" or use `ok.CG(...)`."
            )
        vectors, values = decompose(accurate_gram(curvature.rows))
        whitened = None
        if self.store_whitened:
            whitened = _whiten(_root(vectors, values, damping), curvature.rows)
        return GramFactor(vectors, values, whitened)

    def apply(
        self,
        operator: lx.AbstractLinearOperator,
        factor: GramFactor | BlockFactor,
        vector: Params,
    ) -> tuple[Params, Any, dict[str, Any]]:
        """(x - Uᵀ(λI + UUᵀ)⁻¹ U x) / λ."""
        curvature, damping = _split(operator)
        is_broken = ~all_finite(factor)
        if isinstance(factor, BlockFactor):
            # A block that is not finite and a block that is not positive look alike.
            failure = RESULTS.where(
                all_finite(curvature), RESULTS.indefinite, RESULTS.nonfinite_operator
            )
            value = block_solve(curvature, factor, damping, vector)
        else:
            failure = RESULTS.nonfinite_operator
            value = _solve(curvature.rows, factor, damping, vector)
        outcome = first_of(
            (~all_finite(vector), RESULTS.nonfinite_input),
            (~(damping > 0), RESULTS.undamped),
            (is_broken, failure),
        )
        rank = jnp.asarray(num_rows(curvature.rows), jnp.int32)
        return value, outcome, {"rank": rank}

    def diagonal(
        self, operator: lx.AbstractLinearOperator, factor: GramFactor | BlockFactor
    ) -> Params:
        """(1 - Σ_i W_ij²) / λ, by chunks of coordinates."""
        curvature, damping = _split(operator)
        if isinstance(factor, BlockFactor):
            known = block_diagonal(curvature, factor, damping)
        else:
            root = _root(factor.vectors, factor.values, damping)
            known = _low_rank_diagonal(root, curvature.rows, damping)
        return with_derivative_of(_diagonal_anew, operator, known)

    def entry(
        self,
        operator: lx.AbstractLinearOperator,
        factor: GramFactor | BlockFactor,
        a: Int[Array, "..."],
        b: Int[Array, "..."],
    ) -> Float[Array, "..."]:
        """(δ_ab - w_aᵀ w_b) / λ with w the columns of W."""
        curvature, damping = _split(operator)
        if isinstance(factor, BlockFactor):
            return block_entry(curvature, factor, damping, a, b)
        if factor.whitened is not None:
            w_a, w_b = columns(factor.whitened, a), columns(factor.whitened, b)
        else:
            root = _root(factor.vectors, factor.values, damping)
            u = [columns(curvature.rows, i).astype(root.dtype) for i in (a, b)]
            w_a, w_b = (jnp.tensordot(root, x, 1) for x in u)
        one = identity_entries(a, b, w_a.dtype)
        return (one - jnp.sum(w_a * w_b, axis=0)) / damping.astype(w_a.dtype)


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
    check_inverse("ok.solve_rows", inverse)
    curvature, damping = _split(inverse.operator)
    factor = inverse.factor
    if not isinstance(factor, GramFactor) or not isinstance(curvature, LowRank):
        raise ValueError(
            f"`ok.solve_rows` needs an inverse of a `LowRank` curvature by "
            f"`ok.Woodbury`, got one of `{type(curvature).__name__}` by "
            f"`{type(inverse.solver).__name__}`. Use `P.mv`."
        )
    if jnp.shape(coefficients) != factor.values.shape:
        raise ValueError(
            f"`ok.solve_rows` needs one coefficient for each of the "
            f"{factor.values.shape[0]} rows, got shape {jnp.shape(coefficients)}. For "
            f"many, `jax.vmap` it."
        )
    known = _solve_rows(curvature.rows, factor, damping, coefficients)
    inputs = (curvature.rows, damping, coefficients)
    solved = with_derivative_of(_solve_rows_anew, inputs, known)
    return fit_for_use(solved, inverse.operator, factor)


def _split(operator: lx.AbstractLinearOperator) -> tuple[Any, Float[Array, ""]]:
    """The low-rank curvature, as `factorise` made sure, and λ."""
    return split_damping(operator)


def decompose(matrix: Float[Array, "r r"]) -> tuple[Array, Array]:
    """Eigenvectors in columns and eigenvalues >= 0 of a Gram matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors, jnp.maximum(values, 0)  # maximum keeps a NaN


# In the eigenbasis UUᵀ = V diag(σ) Vᵀ, the result is UᵀV (Vᵀc / (σ + λ)). Two things go
# wrong with that in float32:
#
# (i) Eigenvectors are off by eps, so the parts of small σ mix with those of large ones.
#     One step of iterative refinement, with products by the rows, takes that out: for
#     the part of c where σ is zero to rounding, which is set apart, and for the rest.
#     Not needed where the Gram matrix is wider than the rows.
#
# (ii) The part set apart, a = V₀V₀ᵀc, is a combination of rows that vanishes if rows
#     are equal and is small if they are nearly so. Divided by λ, it
#     would be a difference of large terms. So t = Uᵀa is formed first, and left out if
#     it is no larger than its rounding, eps ‖a‖ √σ_max.


def _solve_rows(
    rows: PyTree, factor: GramFactor, damping: Array, c: Float[Array, " r"]
) -> Params:
    v, sigma = factor.vectors, factor.values
    damping, c = damping.astype(sigma.dtype), c.astype(sigma.dtype)
    eps = max([float(jnp.finfo(u.dtype).eps) for u in jax.tree.leaves(rows)])
    is_refined = eps <= float(jnp.finfo(sigma.dtype).eps)
    is_large = sigma > 8 * eps * sigma[-1]  # an eigenvalue is off by some eps σ_max

    def solve(shift: Any, c: Array) -> Array:
        damped = jnp.where(is_large, sigma + shift, 1)
        return v @ (jnp.where(is_large, 1 / damped, 0) * (v.T @ c))

    def gram_times(y: Params) -> Array:
        return project(rows, y).astype(sigma.dtype)

    near_null = v @ (jnp.where(is_large, 0, 1) * (v.T @ c))
    if is_refined:
        near_null -= solve(0, gram_times(combine(near_null, rows)))
    d = solve(damping, c - near_null)
    y = combine(d, rows)
    if is_refined:
        rest = c - near_null - damping * d - gram_times(y)
        y = jax.tree.map(jnp.add, y, combine(solve(damping, rest), rows))

    a = v @ (jnp.where(is_large, 0, damping / (sigma + damping)) * (v.T @ c))
    t = combine(a, rows)
    if is_refined:
        t = jax.tree.map(jnp.subtract, t, combine(solve(0, gram_times(t)), rows))
    rounding = 4 * eps * jnp.sqrt(jnp.sum(a**2) * sigma[-1])
    is_real = jnp.sqrt(dot(t, t)).astype(sigma.dtype) > rounding
    return add(y, jnp.where(is_real, 1 / damping, 0), t)


def _solve(rows: PyTree, factor: GramFactor, damping: Array, x: Params) -> Params:
    y = project(rows, x).astype(factor.values.dtype)
    damped = factor.values + damping.astype(factor.values.dtype)
    c = factor.vectors @ ((factor.vectors.T @ y) / damped)

    def difference(x: Array, near: Array) -> Array:
        wide = wide_dtype(x)
        rest = x.astype(wide) - near.astype(wide)
        return (rest / damping.astype(wide)).astype(x.dtype)

    return jax.tree.map(difference, x, combine(c, rows))


def _root(vectors: Array, values: Array, damping: Array) -> Array:
    """(σ + λ)^-½ Vᵀ: takes the rows U to W with WᵀW = Uᵀ(λI + UUᵀ)⁻¹U."""
    damped = values + damping.astype(values.dtype)
    return vectors.T / jnp.sqrt(damped)[:, None]


def _low_rank_diagonal(root: Array, rows: PyTree, damping: Array) -> Params:
    def finish(squares: Array, u: Array) -> Array:
        rest = (1 - squares) / damping.astype(squares.dtype)
        return rest.astype(u.dtype)

    return jax.tree.map(finish, column_squares(root, rows), rows)


def _whiten(root: Array, rows: PyTree) -> PyTree:
    """W in the dtypes of the rows, at least float32."""
    r = num_rows(rows)

    def leaf(u: Array) -> Array:
        dtype = wide_dtype(u)

        def mix(flat: Array) -> Array:
            mixed = jnp.matmul(
                root, flat.astype(root.dtype), precision=lax.Precision.HIGHEST
            )
            return mixed.astype(dtype)

        return by_chunks(mix, u.reshape(r, -1)).reshape(u.shape)

    return jax.tree.map(leaf, rows)


# The same by what JAX differentiates well, for derivatives only: an eigenvector has no
# derivative where eigenvalues are equal, and a Cholesky factor has.


def _diagonal_anew(operator: lx.AbstractLinearOperator) -> Params:
    curvature, damping = _split(operator)
    if isinstance(curvature, BlockLowRank):
        return block_diagonal(curvature, factor_blocks(curvature, damping), damping)
    lower = jnp.linalg.cholesky(_damped_gram(curvature.rows, damping))
    eye = jnp.eye(lower.shape[0], dtype=lower.dtype)
    root = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    return _low_rank_diagonal(root, curvature.rows, damping)


def _solve_rows_anew(inputs: tuple[PyTree, Array, Array]) -> Params:
    rows, damping, c = inputs
    matrix = _damped_gram(rows, damping)
    return combine(jnp.linalg.solve(matrix, c.astype(matrix.dtype)), rows)


def _damped_gram(rows: PyTree, damping: Array) -> Array:
    matrix = gram(rows).astype(small_dtype())
    return matrix + damping.astype(matrix.dtype) * jnp.eye(
        matrix.shape[0], dtype=matrix.dtype
    )
