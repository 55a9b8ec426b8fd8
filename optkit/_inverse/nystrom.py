"""The randomised Nyström approximation: the leading eigenvalues, inverted exactly."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._results import RESULTS, first_failure
from .._types import Params, wide_dtype
from .._vector import (
    all_finite,
    axpy,
    cast_like,
    combine,
    gram,
    normals,
    project,
    widen,
)
from .base import AbstractExplicitInverse, Solved
from .columns import columns, identity_entries, small_dtype


class NystromFactor(NamedTuple):
    """The approximation UᵀΛU of C."""

    vectors: PyTree  # U, orthonormal rows
    values: Float[Array, " r"]  # Λ >= 0, ascending
    is_indefinite: Array


class Nystrom(AbstractExplicitInverse):
    """The inverse of the best-known part of C, from its products with r random vectors.

    With Ω r random orthonormal rows, Y = ΩC, and the rows of U orthonormal,

        C ≈ Yᵀ(ΩYᵀ)⁻¹Y = UᵀΛU
        (C + λI)⁻¹ ≈ Uᵀ(Λ + λ)⁻¹U + (I - UᵀU)/λ

    Exact where C has rank r or less; else it stands for C's r leading eigenvalues,
    and a curvature outside of them counts as zero: such a direction is multiplied by
    1/λ. Needs a positive semidefinite C, so a Gauss-Newton matrix or a Fisher rather
    than a Hessian away from a minimum. r products once, one after the other, and r
    times the memory of the params; then a vector costs two passes over U.

    For a solution to tolerance, use it to speed up conjugate gradients:
    `ok.CG(preconditioner=ok.nystrom_preconditioner(P))`.

    `stats` has `rank` and `smallest_value`, Λ's last: λ far below it is a sign that
    r is too small. Products with bfloat16 params have three digits, so of their C it
    knows what is above λ_max / 100: a smaller λ needs float32 params, or `ok.Woodbury`.

    Args:
        rank: r >= 1, at most the number of coordinates.
        key: a random key; the same key gives the same approximation.

    Raises:
        ValueError: for rank < 1; in `ok.invert`, for a rank above the number of
            coordinates.
        TypeError: for something else than one random key.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Nystrom(1, key=jax.random.key(0)), damping=2.0)
        >>> P.mv(jnp.array([1.0, 1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)

    Reference:
        Frangella, Tropp and Udell 2023, arXiv:2110.02820, Algorithm 2.1. Departs: an
        eigendecomposition of the r x r core in place of its Cholesky factor, so an
        indefinite C is seen, where the sketch meets a negative eigenvalue, and not NaN.
    """

    rank: int = eqx.field(static=True)
    key: Array
    needs_symmetric: ClassVar[bool] = True

    def __init__(self, rank: int, *, key: Array) -> None:
        check = Check("ok.Nystrom")
        check.count(rank=rank)
        check.key(key)
        self.rank, self.key = rank, key

    def factorise(self, operator: lx.AbstractLinearOperator) -> NystromFactor:
        """Products with random vectors, and their eigendecomposition."""
        curvature, _ = split_damping(operator)
        limit, reason = curvature.in_size(), "the number of coordinates"
        Check("ok.Nystrom").at_most(limit, reason, rank=self.rank)
        return _sketch(curvature, self.key, self.rank)

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: NystromFactor, vector: Params
    ) -> Solved:
        """Two passes over U."""
        _, damping = split_damping(operator)
        outcome = first_failure(
            (~all_finite(vector), RESULTS.nonfinite_input),
            (~all_finite(factor.values), RESULTS.nonfinite_operator),
            (factor.is_indefinite, RESULTS.indefinite),
            (damping <= 0, RESULTS.undamped),
        )
        weights = _weights(factor.values, damping)
        value = update(factor.vectors, weights, 1 / damping, vector)
        stats = {
            "rank": jnp.asarray(self.rank, jnp.int32),
            "smallest_value": factor.values[0],
        }
        return value, outcome, stats

    def diagonal(
        self, operator: lx.AbstractLinearOperator, factor: NystromFactor
    ) -> Params:
        """1/λ, less the squares of the entries of U over their eigenvalues."""
        _, damping = split_damping(operator)
        return _update_diagonal(
            *_held_constant((factor.vectors, factor.values, damping), operator)
        )

    def entry(
        self,
        operator: lx.AbstractLinearOperator,
        factor: NystromFactor,
        a: Int[Array, "..."],
        b: Int[Array, "..."],
    ) -> Float[Array, "..."]:
        """δ_ab/λ + Σ_i w_i U_ia U_ib."""
        _, damping = split_damping(operator)
        u_a, u_b = columns(factor.vectors, a), columns(factor.vectors, b)
        weights = _weights(factor.values, damping).astype(u_a.dtype)
        rest = jnp.einsum("r,r...,r...->...", weights, u_a, u_b)
        return identity_entries(a, b, rest.dtype) / damping.astype(rest.dtype) + rest


@eqx.filter_jit
def _sketch(
    curvature: lx.AbstractLinearOperator, key: Array, rank: int
) -> NystromFactor:
    """U and Λ. A matrix of r rows, times an r x r matrix from the left, is `_mix`."""
    structure = curvature.in_structure()
    eps = max([float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(structure)])

    omega = normals(key, structure, rank)
    # Cholesky orthonormalises to rounding in two rounds.
    for _ in range(2):
        lower = jnp.linalg.cholesky(_small(gram(omega)))
        inverse = lax.linalg.triangular_solve(
            lower, jnp.eye(rank, dtype=lower.dtype), left_side=True, lower=True
        )
        omega = _mix(inverse, omega)
    omega = cast_like(omega, structure)

    product = lx.linearise(curvature).mv
    y = lax.map(product, omega)
    core = _small(jax.vmap(lambda row: project(omega, row))(y))
    core = 0.5 * (core + core.T)
    d, v = jnp.linalg.eigh(core)
    # Step 3: a shift ν by rounding keeps the core positive definite.
    nu = eps * jnp.sqrt(jnp.sum(_small(jnp.diagonal(gram(y)))))
    is_indefinite = d[0] < -10 * rank**0.5 * nu
    d = jnp.maximum(d + nu, nu)
    d = jnp.where(d > 0, d, 1)

    wide = axpy(nu, omega, widen(y))
    b = _mix((v / jnp.sqrt(d)).T, wide)
    s, q = jnp.linalg.eigh(_small(gram(b)))
    # Rows of U below rounding are not orthonormal, and weighted by a Λ as small.
    values = jnp.maximum(s - nu, 0)
    floor = jnp.finfo(s.dtype).eps * jnp.maximum(s[-1], 0)
    scale = jnp.where(s > floor, 1 / jnp.sqrt(jnp.where(s > floor, s, 1)), 0)
    u = _mix((q * scale).T, b)
    return NystromFactor(cast_like(u, structure), values, is_indefinite)


def _mix(matrix: Float[Array, "k r"], rows: PyTree) -> PyTree:
    """The matrix times the rows."""
    return jax.vmap(lambda c: combine(c, rows))(matrix)


def _small(matrix: Array) -> Array:
    return matrix.astype(small_dtype())


def _weights(values: Array, damping: Array) -> Array:
    """1/(Λ + λ) - 1/λ, without subtracting."""
    damping = damping.astype(values.dtype)
    return -values / (damping * (values + damping))


def update(vectors: PyTree, weights: Array, scale: Array, x: Params) -> Params:
    """S x + Uᵀ(w ∘ Ux)."""
    c = project(vectors, x)
    rest = combine(weights.astype(c.dtype) * c, vectors)

    def added(x: Array, rest: Array) -> Array:
        wide = wide_dtype(x)
        total = scale.astype(wide) * x.astype(wide) + rest.astype(wide)
        return total.astype(x.dtype)

    return jax.tree.map(added, x, rest)


def _update_diagonal(vectors: PyTree, values: Array, damping: Array) -> Params:
    return diagonal_of_update(vectors, _weights(values, damping), 1 / damping)


def diagonal_of_update(vectors: PyTree, weights: Array, scale: Array) -> Params:
    """The diagonal of s I + Uᵀ diag(w) U."""

    def leaf_diagonal(u: Array) -> Array:
        wide = wide_dtype(u)
        squares = jnp.tensordot(weights.astype(wide), u.astype(wide) ** 2, 1)
        return (scale.astype(wide) + squares).astype(u.dtype)

    return jax.tree.map(leaf_diagonal, vectors)


@eqx.filter_custom_jvp
def _held_constant(value: PyTree, operator: lx.AbstractLinearOperator) -> PyTree:
    del operator
    return value


@_held_constant.def_jvp
def _(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise NotImplementedError(
        "`P.diagonal()` by `ok.Nystrom` has no derivative. Differentiate `P.mv`, "
        "`P.entry`, or the diagonal by `ok.Woodbury`."
    )
