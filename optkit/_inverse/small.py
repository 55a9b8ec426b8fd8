"""LU for small systems and GMRES for others: the default for Jacobians."""

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PyTree

from .._results import RESULTS, first_failure
from .._vector import common_dtype, explicit_sharding, from_vector, norm, to_vector
from .base import AbstractIterative, Operator, Solved, System
from .gmres import GMRES

_SMALL = 100  # coordinates
_CHUNK = 25  # columns of the matrix that are computed at once


class LUOrGMRES(AbstractIterative):
    """LU of the matrix of a small operator, and `ok.GMRES()` for others.

    Up to 100 coordinates, in float32 or wider and not sharded, A is scaled so that the
    largest entries of its rows and columns are about 1, and S = R A C is factorised:

        x = C S⁻¹ R b    r = b - A x    x <- x + C S⁻¹ R r

    The error is that of a solve with S, so equations and unknowns may have any scales,
    such as multipliers and probabilities of 1e-10 together. If a pivot is zero to
    rounding, its unknown is free. So a singular system is solved if it has a solution,
    and reported if it has none. Of many solutions, it gives the smallest.

    `stats` has `residual`, the true |b - A x| / |b|, and the statistics of GMRES where
    that is used.

    Reference:
        Skeel 1980, Iterative refinement implies numerical stability for Gaussian
        elimination.
    """

    needs_symmetric: ClassVar[bool] = False

    def factorise(self, operator: Operator) -> PyTree:
        """The matrix A, or None if it is not small."""
        return _matrix(operator) if _is_small(operator.in_structure()) else None

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The transposed operator and matrix."""
        operator, matrix = state
        return (operator.transpose(), jax.tree.map(jnp.transpose, matrix)), options

    def iterate(self, system: System, factor: PyTree) -> Solved:
        """One solve, and one step of refinement."""
        if factor is None:
            return GMRES().iterate(system, None)
        lu, b = _factorised(factor), to_vector(system.b).astype(factor.dtype)
        x = lu.solve(b)
        x = x + lu.solve(b - _times(factor, x))
        x = lax.cond(lu.is_regular, lambda x: x, lu.smallest, x)
        r = b - _times(factor, x)
        _, wanted, accepted = system.goals(None)
        # Residuals are scaled by row, so that a large row does not hide the others.
        size = norm(lu.rows * b)
        off = norm(lu.rows * r) * (system.size / jnp.where(size > 0, size, 1))
        outcome = first_failure(
            (~jnp.isfinite(norm(factor)), RESULTS.nonfinite_operator),
            (off <= jnp.where(lu.is_regular, accepted, wanted), RESULTS.successful),
            (~lu.is_regular, RESULTS.singular_matrix),
            (~(off <= accepted), RESULTS.inexact_solve),
        )
        return from_vector(x, system.b), outcome, {"residual": norm(r)}


class _LU(NamedTuple):
    """P R A C = L U."""

    rows: Float[Array, " n"]  # R
    columns: Float[Array, " n"]  # C
    order: Array  # P
    L: Float[Array, "n n"]  # below its unit diagonal
    U: Float[Array, "n n"]  # but e_j in row j, if pivot j is zero to rounding
    is_flat: Array  # which pivots these are
    is_regular: Array

    def solve(self, b: Float[Array, " n"]) -> Float[Array, " n"]:
        """C U⁻¹ L⁻¹ P R b, with 0 where the pivot is 0."""
        y = (self.rows * b)[self.order]
        y = solve_triangular(self.L, y, lower=True, unit_diagonal=True)
        y = jnp.where(self.is_flat, 0, y)
        return self.columns * solve_triangular(self.U, y)

    def smallest(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """x - N (NᵀN)⁻¹ Nᵀx, with N = C U⁻¹ e_j for zero pivots j, where A N = 0."""
        N = solve_triangular(self.U, jnp.diag(self.is_flat.astype(x.dtype)))
        N = self.columns[:, None] * N
        gram = _times(N.T, N) + jnp.diag((~self.is_flat).astype(x.dtype))
        return x - _times(N, jnp.linalg.solve(gram, _times(N.T, x)))


def _factorised(A: Float[Array, "n n"]) -> _LU:
    rows = _inverse(jnp.max(jnp.abs(A), axis=1, initial=0))
    S = rows[:, None] * A
    columns = _inverse(jnp.max(jnp.abs(S), axis=0, initial=0))
    lower_upper, _, order = lax.linalg.lu(S * columns[None])
    n, pivots = A.shape[0], jnp.abs(jnp.diagonal(lower_upper))
    rounding = n * jnp.finfo(A.dtype).eps
    is_flat = pivots <= 10 * rounding
    U = jnp.where(is_flat[:, None], jnp.eye(n, dtype=A.dtype), lower_upper)
    is_regular = jnp.all(pivots > 100 * rounding)
    return _LU(rows, columns, order, lower_upper, U, is_flat, is_regular)


def _inverse(x: Array) -> Array:
    return 1 / jnp.where(x > 0, x, 1)


def _times(A: Array, x: Array) -> Array:
    return jnp.matmul(A, x, precision=lax.Precision.HIGHEST)


def _is_small(structure: PyTree) -> bool:
    leaves = jax.tree.leaves(structure)
    is_wide = all(jnp.finfo(leaf.dtype).bits >= 32 for leaf in leaves)
    is_whole = all(explicit_sharding(leaf) is None for leaf in leaves)
    size = sum(leaf.size for leaf in leaves)
    return is_wide and is_whole and 0 < size <= _SMALL


def _matrix(operator: Operator) -> Float[Array, "n n"]:
    """A, a few columns at a time: a column may need the memory of all data."""
    structure, n = operator.in_structure(), operator.in_size()

    def column(e: Array) -> Array:
        return to_vector(operator.mv(from_vector(e, structure)))

    count = -(-n // _CHUNK)
    size = -(-n // count)
    eye = jnp.eye(count * size, n, dtype=common_dtype(structure))
    found = lax.map(jax.vmap(column), eye.reshape(count, size, n))
    return found.reshape(count * size, n)[:n].T
