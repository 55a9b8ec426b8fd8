"""Woodbury's identity: low-rank curvature, inverted in the space of its rows.

With U the r rows, C = UᵀU, and K = λI + UUᵀ:

    (λI + UᵀU)⁻¹ x   = (x - Uᵀ K⁻¹ U x) / λ      any x: cancels when x is near the rows
    (λI + UᵀU)⁻¹ Uᵀc = Uᵀ K⁻¹ c                  combinations of rows: nothing cancels

M-FAC is this algebra with a Gram matrix that its optimizer keeps up to date. It weighs
gradients gᵢ by 1/m; here U = G/√m, so its K is this one times m. Its recursions amount
to an elimination of K, in m sequential steps instead of one decomposition.
"""

from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._curvature.low_rank import BlockLowRank, LowRank
from .._results import RESULTS, first_failure
from .._types import Params, wide_dtype
from .._vector import all_finite, combine_blocks, gram, num_rows, project_blocks
from .base import AbstractExplicitInverse, Index, Operator, Solved, with_derivative_of
from .blocks import (
    BlockFactor,
    at_least_jensen,
    block_diagonal,
    block_entry,
    block_solve,
    factor_blocks,
)
from .columns import accurate_gram, column_squares, columns, mixed, small_dtype


class GramFactor(NamedTuple):
    """The eigendecomposition UUᵀ = V diag(σ) Vᵀ, for any λ."""

    vectors: Float[Array, "r r"]  # V, in columns
    values: Float[Array, " r"]  # σ >= 0, ascending
    whitened: PyTree  # W = (σ + λ)^-½ VᵀU, or None


class Woodbury(AbstractExplicitInverse):
    """The inverse of a damped low-rank curvature, by its r x r Gram matrix.

        (λI + UᵀU)⁻¹ x = (x - Uᵀ(λI + UUᵀ)⁻¹ U x) / λ

    It inverts an `ok.LowRank` curvature, such as `ok.empirical_fisher(...)`, or its
    `block_diagonal(B)`, where each block of B coordinates has its own Gram matrix.
    Factorising costs r² n multiplications once and stores r² numbers besides the rows.
    A product reads the rows twice. This is M-FAC's static algorithm.

    The Gram matrix is summed in twice the precision and decomposed into eigenvalues
    rather than Cholesky factors. So neither equal rows nor a λ below the rounding of
    its entries makes it fail. λ must be positive.

    In float32 the difference above loses about eps/λ ‖x‖ to rounding. If x is a
    combination of rows, `ok.solve_rows` avoids this loss.

    Args:
        store_whitened: whether to store W = (λI + UUᵀ)^-½ U too, which is as large as
            the rows. An entry of P then costs O(r) instead of O(r²).

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> print(f"{P.entry(0, 0):.3f} {P.entry(0, 1):.3f}")
        0.375 -0.125

    Reference:
        Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356, section 3.1. Departs: (1)
        one decomposition for all rows; (2) the weight 1/m is in the rows.
    """

    store_whitened: bool = eqx.field(static=True, default=False)
    needs_symmetric: ClassVar[bool] = True

    def factorise(self, operator: Operator) -> GramFactor | BlockFactor:
        """Decomposes UUᵀ, or factorises each block."""
        curvature, damping = split_damping(operator)
        if isinstance(curvature, BlockLowRank):
            return factor_blocks(curvature, damping)
        got = f"`{type(curvature).__name__}`. Use `ok.Nystrom(...)` or `ok.CG(...)`"
        text = f"needs a `LowRank` curvature, got {got}."
        Check("ok.Woodbury").that(isinstance(curvature, LowRank), text)
        vectors, values = decompose(accurate_gram(curvature.rows))
        whitened = None
        if self.store_whitened:
            whitened = mixed(_root(vectors, values, damping), curvature.rows)
        return GramFactor(vectors, values, whitened)

    def apply(
        self, operator: Operator, factor: GramFactor | BlockFactor, vector: Params
    ) -> Solved:
        """(x - Uᵀ(λI + UUᵀ)⁻¹ U x) / λ."""
        curvature, damping = split_damping(operator)
        is_broken = ~all_finite(factor)
        if isinstance(factor, BlockFactor):
            # Cholesky gives NaN both for a NaN and for an indefinite block.
            failure = RESULTS.where(
                all_finite(curvature), RESULTS.indefinite, RESULTS.nonfinite_operator
            )
            value = block_solve(curvature, factor, damping, vector)
        else:
            failure = RESULTS.nonfinite_operator
            value = _solve(curvature.rows, factor, damping, vector)
        outcome = first_failure(
            (~all_finite(vector), RESULTS.nonfinite_input),
            (~(damping > 0), RESULTS.undamped),
            (is_broken, failure),
        )
        rank = jnp.asarray(num_rows(curvature.rows), jnp.int32)
        return value, outcome, {"rank": rank}

    def diagonal(self, operator: Operator, factor: GramFactor | BlockFactor) -> Params:
        """(1 - Σ_i W_ij²) / λ, in which rounding leaves at least 1 / (λ + C_jj)."""
        curvature, damping = split_damping(operator)
        if isinstance(factor, BlockFactor):
            known = block_diagonal(curvature, factor, damping)
        else:
            root = _root(factor.vectors, factor.values, damping)
            known = _low_rank_diagonal(root, curvature, damping)
        return with_derivative_of(_diagonal_anew, operator, known)

    def entry(
        self, operator: Operator, factor: GramFactor | BlockFactor, a: Index, b: Index
    ) -> Float[Array, "..."]:
        """(δ_ab - w_aᵀ w_b) / λ, with w the columns of W."""
        curvature, damping = split_damping(operator)
        if isinstance(factor, BlockFactor):
            return block_entry(curvature, factor, damping, a, b)
        if factor.whitened is not None:
            w_a, w_b = columns(factor.whitened, a), columns(factor.whitened, b)
        else:
            root = _root(factor.vectors, factor.values, damping)
            u = [columns(curvature.rows, i).astype(root.dtype) for i in (a, b)]
            w_a, w_b = (jnp.tensordot(root, x, 1) for x in u)
        rest = jnp.where(a == b, 1, 0) - jnp.sum(w_a * w_b, axis=0)
        return rest / damping.astype(w_a.dtype)


def decompose(matrix: Float[Array, "r r"]) -> tuple[Array, Array]:
    """Eigenvectors in columns and eigenvalues >= 0 of a Gram matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    return vectors, jnp.maximum(values, 0)  # maximum keeps a NaN


def _solve(rows: PyTree, factor: GramFactor, damping: Array, x: Params) -> Params:
    y = project_blocks(rows, x, num_rows(rows)).astype(factor.values.dtype)
    damped = factor.values + damping.astype(factor.values.dtype)
    c = factor.vectors @ ((factor.vectors.T @ y) / damped)

    def difference(x: Array, near: Array) -> Array:
        wide = wide_dtype(x)
        rest = x.astype(wide) - near.astype(wide)
        return (rest / damping.astype(wide)).astype(x.dtype)

    return jax.tree.map(difference, x, combine_blocks(c, rows))


def _root(vectors: Array, values: Array, damping: Array) -> Array:
    """(σ + λ)^-½ Vᵀ, which maps the rows U to W with WᵀW = Uᵀ(λI + UUᵀ)⁻¹U."""
    damped = values + damping.astype(values.dtype)
    return vectors.T / jnp.sqrt(damped)[:, None]


def _low_rank_diagonal(root: Array, curvature: LowRank, damping: Array) -> Params:
    def finish(squares: Array, c: Array) -> Array:
        return at_least_jensen(1 - squares, c, damping).astype(c.dtype)

    squares = column_squares(root, curvature.rows)
    return jax.tree.map(finish, squares, curvature.diagonal())


# The diagonal from a Cholesky factor, for derivatives only: eigenvectors have none
# where eigenvalues are equal.


def _diagonal_anew(operator: Operator) -> Params:
    curvature, damping = split_damping(operator)
    if isinstance(curvature, BlockLowRank):
        return block_diagonal(curvature, factor_blocks(curvature, damping), damping)
    lower = jnp.linalg.cholesky(damped_gram(curvature.rows, damping))
    eye = jnp.eye(lower.shape[0], dtype=lower.dtype)
    root = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    return _low_rank_diagonal(root, curvature, damping)


def damped_gram(rows: PyTree, damping: Array) -> Array:
    """λI + UUᵀ."""
    matrix = gram(rows).astype(small_dtype())
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return matrix + damping.astype(matrix.dtype) * eye
