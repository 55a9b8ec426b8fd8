"""The randomised Nyström approximation, which inverts the leading eigenvalues."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, PyTree

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
    narrowest_eps,
    normals,
    project,
    widen,
)
from .base import AbstractExplicitInverse, Index, Operator, Solved
from .columns import columns, small_dtype


class NystromFactor(NamedTuple):
    """The approximation UᵀΛU of C."""

    vectors: PyTree  # U, orthonormal rows
    values: Float[Array, " r"]  # Λ >= 0, ascending
    is_indefinite: Array


class Nystrom(AbstractExplicitInverse):
    """Approximates the inverse from products of C with r random vectors.

    With Ω r random orthonormal rows, Y = ΩC, and the rows of U orthonormal,

        C ≈ Yᵀ(ΩYᵀ)⁻¹Y = UᵀΛU
        (C + λI)⁻¹ ≈ Uᵀ(Λ + λ)⁻¹U + (I - UᵀU)/λ

    Exact if C has rank r or less. Otherwise it captures the r leading eigenvalues of C
    and treats the other directions as flat: it multiplies them by 1/λ. C must be
    positive semidefinite: a Gauss-Newton matrix or a Fisher rather than a Hessian away
    from a minimum. It costs r products once, one after the other, and r times the
    memory of the params. Each vector then costs two passes over U.

    To solve to a given tolerance, use it to speed up conjugate gradients:
    `ok.CG(preconditioner=ok.nystrom_preconditioner(P))`.

    `stats` has `rank` and `smallest_value`, the smallest of Λ. If λ is far below it, r
    is too small. Products with bfloat16 params have three digits, so they reveal only
    eigenvalues above λ_max / 100: a smaller λ needs float32 params, or `ok.Woodbury`.

    Args:
        rank: r >= 1, at most the number of coordinates.
        key: a random key; the same key gives the same approximation.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Nystrom(1, key=jax.random.key(0)), damping=2.0)
        >>> P.mv(jnp.array([1.0, 1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)

    Reference:
        Frangella, Tropp and Udell 2023, arXiv:2110.02820, Algorithm 2.1. Departs: (1)
        an eigendecomposition of the r x r core instead of its Cholesky factor, so that
        a negative eigenvalue in the sketch is reported instead of giving NaN.
    """

    rank: int = eqx.field(static=True)
    key: Array
    needs_symmetric: ClassVar[bool] = True

    def __init__(self, rank: int, *, key: Array) -> None:
        check = Check("ok.Nystrom")
        check.count(rank=rank)
        check.key(key)
        self.rank, self.key = rank, key

    def factorise(self, operator: Operator) -> NystromFactor:
        """Products with random vectors, and an eigendecomposition."""
        curvature, _ = split_damping(operator)
        limit, reason = curvature.in_size(), "the number of coordinates"
        Check("ok.Nystrom").at_most(limit, reason, rank=self.rank)
        return _sketch(curvature, self.key, self.rank)

    def apply(
        self, operator: Operator, factor: NystromFactor, vector: Params
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
        rank = jnp.asarray(self.rank, jnp.int32)
        return value, outcome, {"rank": rank, "smallest_value": factor.values[0]}

    def diagonal(self, operator: Operator, factor: NystromFactor) -> Params:
        """Σ_i U_ij² / (Λ_i + λ) + (1 - Σ_i U_ij²) / λ."""
        _, damping = split_damping(operator)
        leading = 1 / (factor.values + damping.astype(factor.values.dtype))
        inputs = (factor.vectors, leading, 1 / damping)
        return diagonal_of_sketch(*_without_derivative(inputs, operator))

    def entry(
        self, operator: Operator, factor: NystromFactor, a: Index, b: Index
    ) -> Float[Array, "..."]:
        """δ_ab/λ + Σ_i w_i U_ia U_ib."""
        _, damping = split_damping(operator)
        u_a, u_b = columns(factor.vectors, a), columns(factor.vectors, b)
        weights = _weights(factor.values, damping).astype(u_a.dtype)
        rest = jnp.einsum("r,r...,r...->...", weights, u_a, u_b)
        return jnp.where(a == b, 1, 0) / damping.astype(rest.dtype) + rest


@eqx.filter_jit
def _sketch(curvature: Operator, key: Array, rank: int) -> NystromFactor:
    """U and Λ."""
    structure = curvature.in_structure()
    omega = normals(key, structure, rank)
    # Two rounds of Cholesky orthonormalise to rounding.
    for _ in range(2):
        lower = jnp.linalg.cholesky(_small(gram(omega)))
        eye = jnp.eye(rank, dtype=lower.dtype)
        omega = _mix(solve_triangular(lower, eye, lower=True), omega)
    omega = cast_like(omega, structure)

    product = lx.linearise(curvature).mv
    y = lax.map(product, omega)
    core = _small(jax.vmap(lambda row: project(omega, row))(y))
    core = 0.5 * (core + core.T)
    d, v = jnp.linalg.eigh(core)
    # Step 3: a shift ν of the size of rounding keeps the core positive definite.
    nu = narrowest_eps(structure) * jnp.sqrt(jnp.sum(_small(jnp.diagonal(gram(y)))))
    is_indefinite = d[0] < -10 * rank**0.5 * nu
    d = jnp.maximum(d + nu, nu)
    d = jnp.where(d > 0, d, 1)

    wide = axpy(nu, omega, widen(y))
    b = _mix(v.T / jnp.sqrt(d)[:, None], wide)
    s, q = jnp.linalg.eigh(_small(gram(b)))
    # Rows of U below rounding are not orthonormal, but their Λ is as small.
    values = jnp.maximum(s - nu, 0)
    floor = jnp.finfo(s.dtype).eps * jnp.maximum(s[-1], 0)
    scale = jnp.where(s > floor, 1 / jnp.sqrt(jnp.where(s > floor, s, 1)), 0)
    u = _mix(q.T * scale[:, None], b)
    return NystromFactor(cast_like(u, structure), values, is_indefinite)


def _mix(matrix: Float[Array, "k r"], rows: PyTree) -> PyTree:
    """The matrix times the stacked rows."""
    return jax.vmap(lambda c: combine(c, rows))(matrix)


def _small(matrix: Array) -> Array:
    return matrix.astype(small_dtype())


def _weights(values: Array, damping: Array) -> Array:
    """w = 1/(Λ + λ) - 1/λ, without cancellation."""
    damping = damping.astype(values.dtype)
    return -values / (damping * (values + damping))


def update(vectors: PyTree, weights: Array, scale: Array, x: Params) -> Params:
    """s x + Uᵀ(w ∘ Ux)."""
    c = project(vectors, x)
    return axpy(scale, x, combine(weights.astype(c.dtype) * c, vectors))


def diagonal_of_sketch(vectors: PyTree, values: Array, scale: Array) -> Params:
    """The diagonal of Uᵀ diag(v) U + s(I - UᵀU), with terms >= 0 if v and s are."""

    def leaf_diagonal(u: Array) -> Array:
        wide = wide_dtype(u)
        squares = u.astype(wide) ** 2
        v = values.astype(wide).reshape(-1, *[1] * (u.ndim - 1))
        rest = jnp.maximum(1 - jnp.sum(squares, axis=0), 0)
        return jnp.sum(v * squares, axis=0) + scale.astype(wide) * rest

    return jax.tree.map(leaf_diagonal, vectors)


@eqx.filter_custom_jvp
def _without_derivative(value: PyTree, operator: Operator) -> PyTree:
    del operator
    return value


@_without_derivative.def_jvp
def _(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    text = (
        "`P.diagonal()` by `ok.Nystrom` has no derivative. Differentiate `P.mv`, "
        "`P.entry`, or the diagonal by `ok.Woodbury`."
    )
    raise NotImplementedError(text)
