"""Projections onto the transport polytope: matrices with given row and column sums.

With dual variables α for the rows and β for the columns, and ϕ(z) = ½ max(z, 0)² for
the Euclidean and ϕ(z) = exp(z) for the Kullback-Leibler projection,

    P = ϕ'(x + α 1ᵀ + 1 βᵀ)
    (α, β) = argmin  Σ ϕ(x + α 1ᵀ + 1 βᵀ) - rᵀα - cᵀβ

a convex problem of a + b unknowns for an (a, b) matrix. Newton's method solves it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

from .._check import check_real
from .._types import wide_dtype

_MAX_STEPS = 100
_MAX_HALVINGS = 30


def transport(
    x: Array,
    row_sums: Array,
    column_sums: Array,
) -> Float[Array, "a b"]:
    """The nearest matrix P >= 0 with given row and column sums.

    P = argmin ½|P - x|²: with x = -costs/ε, optimal transport with a quadratic
    regularisation, whose plans are sparse.

    Args:
        x: the matrix.
        row_sums: r >= 0.
        column_sums: c >= 0, with Σ c = Σ r.

    Returns:
        P, like x; NaN where there is none. Derivatives in r and c are meant together,
        along changes that keep Σ c = Σ r.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[1.0, 0.0], [0.0, 0.5]])
        >>> half = jnp.array([0.5, 0.5])
        >>> print(ok.projections.transport(x, half, half).round(3))
        [[0.5 0. ]
         [0.  0.5]]

    Reference:
        Blondel, Seguy and Rolet 2018, arXiv:1710.06276, equation 7.
    """
    call = "ok.projections.transport"
    x_, r, c = _checked(call, x, row_sums, column_sums)
    constants = lax.stop_gradient((x_, r, c))
    z, is_solved = _minimise(_EUCLIDEAN, *constants)
    # On its support P is affine in (α, β), which solve a linear system there. Its
    # matrix is constant, and singular along each of the support's components.
    support = _EUCLIDEAN.slope(_shifted(constants[0], z)) > 0
    inside = jnp.where(support, x_, 0)
    right = jnp.concatenate([r - inside.sum(1), c - inside.sum(0)])
    operator = lx.MatrixLinearOperator(_bordered(support.astype(x_.dtype)))
    z = lx.linear_solve(operator, right, lx.SVD(), throw=False).value
    plan = jnp.where(support, _shifted(x_, z), 0)
    # A wrong support shows as a negative entry. Rounding leaves some, which go.
    tolerance = jnp.sqrt(jnp.finfo(x_.dtype).eps) * jnp.sum(r)
    is_solved = is_solved & jnp.all(plan >= -tolerance)
    return jnp.where(is_solved, jnp.maximum(plan, 0), jnp.nan).astype(x.dtype)


def kl_transport(
    x: Array,
    row_sums: Array,
    column_sums: Array,
) -> Float[Array, "a b"]:
    """The positive matrix nearest to exp(x) with given row and column sums.

    P = argmin Σ P log P - P x: with x = -costs/ε, optimal transport regularised by
    entropy, to convergence.

    Args:
        x: the logarithms of the matrix.
        row_sums: r > 0.
        column_sums: c > 0, with Σ c = Σ r.

    Returns:
        P, like x; NaN where there is none. Derivatives in r and c are meant together,
        along changes that keep Σ c = Σ r.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[jnp.log(9.0), 0.0], [0.0, 0.0]])
        >>> sums = jnp.array([2.0, 2.0])
        >>> print(ok.projections.kl_transport(x, sums, sums).round(2))
        [[1.5 0.5]
         [0.5 1.5]]

    Reference:
        Blondel, Seguy and Rolet 2018, arXiv:1710.06276, equation 7.
    """
    call = "ok.projections.kl_transport"
    x_, r, c = _checked(call, x, row_sums, column_sums)
    # α + t, β - t are the same P: of all t, the one with Σα = Σβ is asked for.
    gauge = jnp.concatenate([jnp.ones_like(r), -jnp.ones_like(c)])
    weight = lax.stop_gradient(jnp.sum(r)) / gauge.size

    def residual(z: Array) -> Array:
        plan = jnp.exp(_shifted(x_, z))
        sums = jnp.concatenate([plan.sum(1) - r, plan.sum(0) - c])
        return sums + weight * gauge * jnp.mean(gauge * z)

    def solve(_: Callable[[Array], Array], z: Array) -> Array:
        z, is_solved = _minimise(_ENTROPIC, *lax.stop_gradient((x_, r, c)))
        z = z - gauge * jnp.mean(gauge * z)
        return jnp.where(is_solved, z, jnp.nan)

    def tangent_solve(linear: Callable[[Array], Array], right: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(right), right)

    z = lax.custom_root(residual, jnp.zeros_like(gauge), solve, tangent_solve)
    return jnp.exp(_shifted(x_, z)).astype(x.dtype)


def birkhoff(x: Array) -> Float[Array, "n n"]:
    """The nearest doubly stochastic matrix: `transport` with all sums 1.

    Args:
        x: the matrix.

    Returns:
        P >= 0 like x, with P 1 = 1 and Pᵀ1 = 1.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for a matrix that is not square.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[0.6, 0.2], [0.0, 0.8]])
        >>> print(ok.projections.birkhoff(x).round(3))
        [[0.8 0.2]
         [0.2 0.8]]
    """
    ones = _ones("ok.projections.birkhoff", x)
    return transport(x, ones, ones)


def kl_birkhoff(x: Array) -> Float[Array, "n n"]:
    """The doubly stochastic matrix nearest to exp(x): `kl_transport` with all sums 1.

    Args:
        x: the logarithms of the matrix.

    Returns:
        P > 0 like x, with P 1 = 1 and Pᵀ1 = 1.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for a matrix that is not square.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[jnp.log(9.0), 0.0], [0.0, 0.0]])
        >>> print(ok.projections.kl_birkhoff(x).round(2))
        [[0.75 0.25]
         [0.25 0.75]]
    """
    ones = _ones("ok.projections.kl_birkhoff", x)
    return kl_transport(x, ones, ones)


class _Potential(NamedTuple):
    """ϕ, its two derivatives, and a sweep that satisfies rows, then columns."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]
    sweep: Callable[[Array, Array, Array, Array], Array]


def _sinkhorn(z: Array, x: Array, r: Array, c: Array) -> Array:
    """β from α, then α from β: exact in each, so it never ascends."""
    alpha = z[: r.size]
    beta = jnp.log(c) - jax.nn.logsumexp(x + alpha[:, None], axis=0)
    alpha = jnp.log(r) - jax.nn.logsumexp(x + beta, axis=1)
    return jnp.concatenate([alpha, beta])


_EUCLIDEAN = _Potential(
    lambda z: 0.5 * jax.nn.relu(z) ** 2,
    jax.nn.relu,
    lambda z: (z > 0).astype(z.dtype),
    lambda z, x, r, c: z,
)
_ENTROPIC = _Potential(jnp.exp, jnp.exp, jnp.exp, _sinkhorn)


def _minimise(
    phi: _Potential, x: Array, r: Array, c: Array
) -> tuple[Float[Array, " n"], Array]:
    """The dual variables by Newton's method, and whether it converged."""
    eps = jnp.finfo(x.dtype).eps
    mass = jnp.sum(r)
    gauge = jnp.concatenate([jnp.ones_like(r), -jnp.ones_like(c)])
    eye = jnp.eye(gauge.size, dtype=x.dtype)
    tolerance = 10 * eps * gauge.size * mass

    def dual(z: Array) -> Array:
        linear = jnp.vdot(jnp.concatenate([r, c]), z)
        return jnp.sum(phi.value(_shifted(x, z))) - linear

    def gradient(z: Array) -> Array:
        plan = phi.slope(_shifted(x, z))
        return jnp.concatenate([plan.sum(1) - r, plan.sum(0) - c])

    def step(carry: Any) -> Any:
        z, g, k, _ = carry
        H = _bordered(phi.curvature(_shifted(x, z)))
        top = jnp.max(jnp.diagonal(H), initial=eps)
        ridge = top * jnp.clip(jnp.max(jnp.abs(g)) / mass, eps, 1e-3)
        H = H + ridge * eye + top / gauge.size * jnp.outer(gauge, gauge)
        d = -jnp.linalg.solve(H, g)
        value, slope = dual(z), jnp.vdot(g, d)

        def is_too_long(search: Any) -> Array:
            t, j = search
            bound = value + 1e-4 * t * slope + 10 * eps * jnp.abs(value)
            return ~(dual(z + t * d) <= bound) & (j < _MAX_HALVINGS)

        t, j = lax.while_loop(
            is_too_long, lambda s: (s[0] / 2, s[1] + 1), (jnp.ones_like(mass), 0)
        )
        z = phi.sweep(jnp.where(j < _MAX_HALVINGS, z + t * d, z), x, r, c)
        return z, gradient(z), k + 1, j == _MAX_HALVINGS

    def goes_on(carry: Any) -> Array:
        _, g, k, is_stuck = carry
        return (jnp.max(jnp.abs(g)) > tolerance) & (k < _MAX_STEPS) & ~is_stuck

    start = jnp.concatenate([-jnp.max(x, axis=1) + r, jnp.zeros_like(c)])
    start = phi.sweep(start, x, r, c)
    z, g, _, _ = lax.while_loop(
        goes_on, step, (start, gradient(start), 0, jnp.zeros((), bool))
    )
    # A gap between the sums of r and c leaves a gradient that no P removes.
    loose = jnp.sqrt(eps) * mass
    return z, jnp.max(jnp.abs(g), initial=0) <= loose


def _shifted(x: Array, z: Array) -> Array:
    """X + α 1ᵀ + 1 βᵀ."""
    a = x.shape[0]
    return x + z[:a, None] + z[a:]


def _bordered(weights: Float[Array, "a b"]) -> Float[Array, "n n"]:
    """The Hessian in (α, β) of a separable sum of those second derivatives."""
    return jnp.block(
        [
            [jnp.diag(weights.sum(1)), weights],
            [weights.T, jnp.diag(weights.sum(0))],
        ]
    )


def _checked(call: str, x: Array, r: Array, c: Array) -> tuple[Array, Array, Array]:
    """The arguments in float32 or wider, after checking them."""
    for name, array in (("x", x), ("row_sums", r), ("column_sums", c)):
        check_real(call, name, array)
    if jnp.ndim(x) != 2 or jnp.shape(x) != (*jnp.shape(r), *jnp.shape(c)):
        raise ValueError(
            f"`{call}` needs x of shape (a, b), row_sums of (a,) and column_sums of "
            f"(b,), got {jnp.shape(x)}, {jnp.shape(r)} and {jnp.shape(c)}. For many "
            f"matrices, `jax.vmap` it."
        )
    dtype = wide_dtype(x)
    return x.astype(dtype), r.astype(dtype), c.astype(dtype)


def _ones(call: str, x: Array) -> Array:
    check_real(call, "x", x)
    if jnp.ndim(x) != 2 or x.shape[0] != x.shape[1]:
        raise ValueError(f"`{call}` needs a square matrix, got {jnp.shape(x)}.")
    return jnp.ones(x.shape[0], x.dtype)
