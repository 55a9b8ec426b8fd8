"""Projections onto the solutions of linear equations and inequalities."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool, Float

from .._check import check_real
from .._types import wide_dtype

_MAX_STEPS = 50


def affine_set(x: Array, A: Array, b: Array) -> Float[Array, " n"]:
    """The nearest point with A p = b.

        p = x + A⁺(b - A x)

    Rows of A may depend on each other. Derivatives in A are then those along which
    its rank stays.

    Args:
        x: the point.
        A: the matrix.
        b: the right-hand side.

    Returns:
        p, like x; NaN where no point satisfies the equations.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for shapes that do not fit.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> A, b = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
        >>> print(ok.projections.affine_set(jnp.array([2.0, 1.0]), A, b).round(3))
        [1. 0.]
    """
    _check_rows("ok.projections.affine_set", x, ("A", A), ("b", b))
    dtype = wide_dtype(x)
    p = _nearest(x.astype(dtype), A.astype(dtype), b.astype(dtype))
    return p.astype(x.dtype)


def polyhedron(
    x: Array,
    G: Array,
    h: Array,
    A: Array | None = None,
    b: Array | None = None,
) -> Float[Array, " n"]:
    """The nearest point with G p <= h and A p = b.

    A primal-dual interior point method finds which inequalities hold with equality;
    the projection onto those and A p = b is the answer, and is what is differentiated.

    Args:
        x: the point.
        G: the matrix of the inequalities.
        h: their right-hand side.
        A: the matrix of the equations, if any.
        b: their right-hand side.

    Returns:
        p, like x; NaN where the set is empty. Its derivative exists unless an
        inequality holds with equality at x's projection without being needed.

    Raises:
        TypeError: for leaves that are not real.
        ValueError: for shapes that do not fit, or one of A and b without the other.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> G, h = jnp.array([[1.0, 1.0], [0.0, -1.0]]), jnp.array([1.0, 0.0])
        >>> print(ok.projections.polyhedron(jnp.array([2.0, 1.0]), G, h).round(3))
        [1. 0.]

    Reference:
        Nocedal and Wright 2006, Numerical Optimization, algorithm 16.4. Departs: (1)
        equations are eliminated first; (2) the last step is exact.
    """
    call = "ok.projections.polyhedron"
    _check_rows(call, x, ("G", G), ("h", h))
    if (A is None) != (b is None):
        raise ValueError(f"`{call}` needs both A and b, or neither.")
    if A is None or b is None:
        A, b = jnp.zeros((0, x.size), x.dtype), jnp.zeros(0, x.dtype)
    _check_rows(call, x, ("A", A), ("b", b))
    dtype = wide_dtype(x)
    x_, G, h, A, b = (jnp.asarray(a).astype(dtype) for a in (x, G, h, A, b))
    active = _active(*lax.stop_gradient((x_, G, h, A, b)))
    M = jnp.concatenate([A, jnp.where(active[:, None], G, 0)])
    p = _nearest(x_, M, jnp.concatenate([b, jnp.where(active, h, 0)]))
    tolerance = jnp.sqrt(jnp.finfo(dtype).eps)
    size = jnp.linalg.norm(G, axis=1) * jnp.linalg.norm(p) + jnp.abs(h)
    is_feasible = jnp.all(_product(G, p) - h <= tolerance * size)
    return jnp.where(is_feasible, p, jnp.nan).astype(x.dtype)


class _Iterate(NamedTuple):
    """What the interior point method keeps."""

    q: Float[Array, " n"]
    s: Float[Array, " k"]
    lam: Float[Array, " k"]
    num_steps: Any
    is_done: Any


# With p = base + σ q, base the projection onto A p = b and N onto the null space of A,
# the problem is min ½|q|² with g q <= e, the rows g of G N having norm 1 and σ the
# largest violation at the base.
def _active(x: Array, G: Array, h: Array, A: Array, b: Array) -> Bool[Array, " k"]:
    """Which inequalities hold with equality at the projection."""
    base, g = x, G
    if A.shape[0]:
        base = _nearest(x, A, b)
        g = G - _product(_product(G, jnp.linalg.pinv(A)), A)
    norms, whole = jnp.linalg.norm(g, axis=1), jnp.linalg.norm(G, axis=1)
    eps = jnp.finfo(x.dtype).eps
    is_zero = norms <= 100 * eps * whole
    norms = jnp.where(is_zero, jnp.where(whole > 0, whole, 1), norms)
    g = jnp.where(is_zero[:, None], 0, g) / norms[:, None]
    e = (h - _product(G, base)) / norms
    sigma = jnp.max(-e, initial=0)
    e = e / jnp.where(sigma > 0, sigma, 1)
    found = lax.while_loop(
        lambda state: ~state.is_done & (state.num_steps < _MAX_STEPS),
        lambda state: _predict_and_correct(state, g, e),
        _Iterate(
            jnp.zeros_like(x),
            jnp.maximum(e, 1),
            jnp.ones_like(e),
            jnp.zeros((), jnp.int32),
            ~(sigma > 0),
        ),
    )
    return (found.lam > found.s) & (sigma > 0) & ~is_zero


def _predict_and_correct(state: _Iterate, g: Array, e: Array) -> _Iterate:
    """One step for q + gᵀλ = 0, g q + s = e, s ∘ λ = 0, s >= 0, λ >= 0."""
    q, s, lam = state.q, state.s, state.lam
    r_dual = q + _product(g.T, lam)
    r_primal = _product(g, q) + s - e
    K = jnp.eye(q.size, dtype=q.dtype) + _product(g.T * (lam / s), g)
    factor = jax.scipy.linalg.cho_factor(K)

    def direction(r_c: Array) -> tuple[Array, Array, Array]:
        right = r_dual + _product(g.T, (lam * r_primal - r_c) / s)
        dq = -jax.scipy.linalg.cho_solve(factor, right)
        ds = -r_primal - _product(g, dq)
        return dq, ds, -(r_c + lam * ds) / s

    def length(ds: Array, dlam: Array, share: float) -> Array:
        both = jnp.concatenate([ds / s, dlam / lam])
        return share / jnp.maximum(share, jnp.max(-both, initial=0))

    mu = jnp.mean(s * lam)
    _, ds, dlam = direction(s * lam)
    a = length(ds, dlam, 1.0)
    centre = (jnp.mean((s + a * ds) * (lam + a * dlam)) / mu) ** 3
    dq, ds, dlam = direction(s * lam + ds * dlam - centre * mu)
    a = length(ds, dlam, 0.995)
    new = q + a * dq, s + a * ds, lam + a * dlam
    is_fine = jnp.all(jnp.isfinite(jnp.concatenate(new))) & (jnp.min(new[1]) > 0)
    is_fine = is_fine & (jnp.min(new[2]) > 0)
    q, s, lam = (
        jnp.where(is_fine, b, a) for a, b in zip((q, s, lam), new, strict=True)
    )
    eps = jnp.finfo(q.dtype).eps
    scale = 1 + jnp.linalg.norm(q)
    r_dual = q + _product(g.T, lam)
    r_primal = (_product(g, q) + s - e) / (1 + jnp.abs(e))
    is_small = jnp.max(jnp.abs(r_dual)) <= 100 * eps * scale
    is_small = is_small & (jnp.max(jnp.abs(r_primal)) <= 100 * eps * scale)
    is_done = ~is_fine | (is_small & (jnp.max(s * lam) <= eps * scale**2))
    return _Iterate(q, s, lam, state.num_steps + 1, is_done)


def _nearest(x: Array, A: Array, b: Array) -> Array:
    """The projection onto A p = b, NaN where there is none."""
    if not A.shape[0]:
        return x
    operator = lx.MatrixLinearOperator(A)
    p = x + lx.linear_solve(operator, b - _product(A, x), lx.SVD(), throw=False).value
    size = jnp.linalg.norm(A, axis=1) * jnp.linalg.norm(p) + jnp.abs(b)
    tolerance = jnp.sqrt(jnp.finfo(x.dtype).eps)
    is_met = jnp.all(jnp.abs(_product(A, p) - b) <= tolerance * size)
    return jnp.where(is_met, p, jnp.nan)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_rows(
    call: str, x: Array, matrix: tuple[str, Array], right: tuple[str, Array]
) -> None:
    """Raises unless matrix @ x - right is a vector of real numbers."""
    check_real(call, "x", x)
    (name, A), (other, b) = matrix, right
    check_real(call, name, A)
    check_real(call, other, b)
    if jnp.ndim(x) != 1 or jnp.shape(A) != (*jnp.shape(b), jnp.size(x)):
        raise ValueError(
            f"`{call}` needs x of shape (n,), {name} of (m, n) and {other} of (m,), "
            f"got {jnp.shape(x)}, {jnp.shape(A)} and {jnp.shape(b)}. For many points, "
            f"`jax.vmap` it."
        )
