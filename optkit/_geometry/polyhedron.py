"""Projections onto the solutions of linear equations and inequalities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._check import Check
from .._types import wide_dtype

_STEPS_PER_ROW = 10


def affine_set(x: Array, A: Array, b: Array) -> Float[Array, " n"]:
    """Returns the nearest point with A p = b.

        p = x + A⁺(b - A x)

    Rows of A may be linearly dependent; derivatives in A then hold along changes that
    keep its rank.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> A, b = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
        >>> print(ok.projections.affine_set(jnp.array([2.0, 1.0]), A, b).round(3))
        [1. 0.]
    """
    _check_rows(Check("ok.projections.affine_set"), x, A=A, b=b)
    dtype = wide_dtype(x)
    p = _nearest(x.astype(dtype), A.astype(dtype), b.astype(dtype))
    return p.astype(x.dtype)


def polyhedron(
    x: Array, G: Array, h: Array, A: Array | None = None, b: Array | None = None
) -> Float[Array, " n"]:
    """Returns the nearest point with G p <= h and, if A and b are given, A p = b.

    A dual active set method finds the inequalities that hold with equality. The result
    is the projection onto these equations and A p = b. It is differentiable unless an
    inequality that holds with equality could be dropped without moving p.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> G, h = jnp.array([[1.0, 1.0], [0.0, -1.0]]), jnp.array([1.0, 0.0])
        >>> print(ok.projections.polyhedron(jnp.array([2.0, 1.0]), G, h).round(3))
        [1. 0.]

    Reference:
        Goldfarb and Idnani 1983, Mathematical Programming 27. Departs: (1) equations
        are eliminated first; (2) the pseudo-inverse of the active rows is kept, not a
        QR factorisation; (3) a row that depends on the active ones is left out, and
        checked at the end.
    """
    check = Check("ok.projections.polyhedron")
    _check_rows(check, x, G=G, h=h)
    check.that((A is None) == (b is None), "needs both A and b, or neither.")
    if A is None or b is None:
        A, b = jnp.zeros((0, x.size), x.dtype), jnp.zeros(0, x.dtype)
    _check_rows(check, x, A=A, b=b)
    dtype = wide_dtype(x)
    x_, G, h, A, b = (jnp.asarray(a).astype(dtype) for a in (x, G, h, A, b))
    active = _active(*lax.stop_gradient((x_, G, h, A, b)))
    M = jnp.concatenate([A, jnp.where(active[:, None], G, 0)])
    p = _nearest(x_, M, jnp.concatenate([b, jnp.where(active, h, 0)]))
    is_feasible = jnp.all(_product(G, p) - h <= _slack(G, h, x_, p))
    return jnp.where(is_feasible, p, jnp.nan).astype(x.dtype)


# The rows g are those of G, projected onto the null space of A and scaled to norm 1.
# base is the projection of x onto A p = b, D the transposed pseudo-inverse of the
# active rows, so D gᵀ = 1 on them, and w the multiplier of the entering row j. Each
# step keeps
#
#     base - p = gᵀu + w g_j,  u = D (base - p - w g_j) >= 0,  G p = h on active rows.
#
# It moves p against z, the part of g_j orthogonal to the active rows, and raises w. Row
# j becomes active once it holds; if an entry of u reaches 0 first, its row leaves.
class _Rows(NamedTuple):
    """The scaled inequalities, and the starting point."""

    base: Float[Array, " n"]
    g: Float[Array, "k n"]
    G: Float[Array, "k n"]
    h: Float[Array, " k"]
    is_zero: Bool[Array, " k"]


class _Pair(NamedTuple):
    """The primal and dual iterate."""

    p: Float[Array, " n"]
    D: Float[Array, "k n"]
    is_active: Bool[Array, " k"]
    is_left_out: Bool[Array, " k"]
    j: Int[Array, ""]
    w: Float[Array, ""]
    is_done: Bool[Array, ""]
    num_steps: Int[Array, ""]


def _active(x: Array, G: Array, h: Array, A: Array, b: Array) -> Bool[Array, " k"]:
    """Which inequalities hold with equality at the projection."""
    if not h.size:
        return jnp.zeros(0, bool)
    rows = _scaled(x, G, h, A, b)
    inactive, zero = jnp.zeros(h.shape, bool), jnp.zeros((), jnp.int32)
    w, is_done = jnp.zeros((), x.dtype), jnp.asarray(False)
    basis, left_out = jnp.zeros_like(G), rows.is_zero
    start = _Pair(rows.base, basis, inactive, left_out, zero, w, is_done, zero)
    limit = _STEPS_PER_ROW * (1 + sum(G.shape))

    def step(pair: _Pair) -> _Pair:
        pair = _choose(pair, rows)
        moved = _move(pair, rows)
        return jax.tree.map(lambda a, b: jnp.where(pair.is_done, a, b), pair, moved)

    return lax.while_loop(
        lambda pair: ~pair.is_done & (pair.num_steps < limit), step, start
    ).is_active


def _scaled(x: Array, G: Array, h: Array, A: Array, b: Array) -> _Rows:
    base, g = x, G
    if A.shape[0]:
        points = jnp.concatenate([x[None], G])
        rights = jnp.concatenate([b[None], jnp.zeros((h.size, b.size), b.dtype)])
        points = jax.vmap(_nearest, (0, None, 0))(points, A, rights)
        base, g = points[0], points[1:]
    norms = jnp.linalg.norm(g, axis=1)
    is_zero = norms <= 100 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(G, axis=1)
    norms = jnp.where(is_zero, 1, norms)
    return _Rows(base, g / norms[:, None], G / norms[:, None], h / norms, is_zero)


def _choose(pair: _Pair, rows: _Rows) -> _Pair:
    """Corrects p on the active rows, and chooses the most violated row to enter."""
    residual = jnp.where(pair.is_active, _product(rows.G, pair.p) - rows.h, 0)
    p = pair.p - _product(pair.D.T, residual)
    eps = jnp.finfo(p.dtype).eps
    size = jnp.maximum(jnp.linalg.norm(p), jnp.sqrt(eps) * jnp.linalg.norm(rows.base))
    size = jnp.linalg.norm(rows.G, axis=1) * size + jnp.abs(rows.h)
    excess = _product(rows.G, p) - rows.h - 20 * eps * size
    excess = jnp.where(pair.is_active | pair.is_left_out, -1, excess)
    has_entered = pair.w == 0
    worst = jnp.argmax(excess).astype(pair.j.dtype)
    j = jnp.where(has_entered, worst, pair.j)
    is_done = has_entered & ~jnp.any(excess > 0)
    return pair._replace(p=p, j=j, is_done=is_done)


def _move(pair: _Pair, rows: _Rows) -> _Pair:
    """The longest step that keeps u >= 0."""
    p, D, is_active, is_left_out, j, w, _, num_steps = pair
    g, row = rows.g, rows.g[j]
    eps = jnp.finfo(p.dtype).eps
    u = jnp.maximum(_product(D, rows.base - p - w * row), 0)
    r, z = jnp.zeros_like(u), row
    for _ in range(2):  # twice makes z orthogonal to the active rows
        more = _product(D, z)
        r, z = r + more, z - _product(g.T, more)
    square = jnp.vdot(z, z)
    is_new = square > (100 * eps) ** 2
    square = jnp.where(is_new, square, 1)
    excess = jnp.maximum(jnp.vdot(rows.G[j], p) - rows.h[j], 0)
    t_enter = jnp.where(is_new, excess / square, jnp.inf)
    may_leave = is_active & (r > 100 * eps)
    ratio = jnp.where(may_leave, u / jnp.where(may_leave, r, 1), jnp.inf)
    k, t_leave = jnp.argmin(ratio), jnp.min(ratio)
    enters, is_lost = t_enter <= t_leave, jnp.isinf(jnp.minimum(t_enter, t_leave))
    enters, leaves = enters & ~is_lost, ~enters & ~is_lost
    t = jnp.where(is_lost, 0, jnp.minimum(t_enter, t_leave))
    out, basis = D[k], z / square
    square = jnp.where(leaves, jnp.vdot(out, out), 1)
    left = D - jnp.outer(_product(D, out) / square, out)
    entered = (D - jnp.outer(r, basis)).at[j].set(basis)
    return _Pair(
        p=jnp.where(is_new, p - t * z, p),
        D=jnp.where(enters, entered, jnp.where(leaves, left.at[k].set(0), D)),
        is_active=is_active.at[k].set(is_active[k] & ~leaves).at[j].set(enters),
        is_left_out=is_left_out.at[j].set(is_lost),
        j=j,
        w=jnp.where(leaves, w + t, 0),
        is_done=pair.is_done,
        num_steps=num_steps + 1,
    )


def _nearest(x: Array, A: Array, b: Array) -> Array:
    """The projection onto A p = b; NaN if the equations have no solution."""
    if not A.shape[0]:
        return x
    norms = jnp.linalg.norm(lax.stop_gradient(A), axis=1)
    norms = jnp.where(norms > 0, norms, 1)
    A, b = A / norms[:, None], b / norms
    solver, operator = lx.SVD(), lx.MatrixLinearOperator(A)
    state = solver.init(operator, {})
    right = b - _product(A, x)
    p = x + lx.linear_solve(operator, right, solver, state=state, throw=False).value
    # One step of refinement. It would be 0 in exact arithmetic.
    rest = solver.compute(state, b - _product(A, p), {})[0]
    p = p + lax.stop_gradient(rest)
    is_met = jnp.all(jnp.abs(_product(A, p) - b) <= _slack(A, b, x, p))
    return jnp.where(is_met, p, jnp.nan)


def _slack(A: Array, b: Array, x: Array, p: Array) -> Array:
    """How far rounding may put A p from b, if p is computed from x."""
    A, b, x, p = lax.stop_gradient((A, b, x, p))
    eps = jnp.finfo(x.dtype).eps
    size = jnp.linalg.norm(p) + 100 * jnp.sqrt(eps) * jnp.linalg.norm(x)
    return jnp.sqrt(eps) * (jnp.linalg.norm(A, axis=1) * size + jnp.abs(b))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _check_rows(check: Check, x: Array, **parts: Array) -> None:
    """Raises unless matrix @ x - right is a real vector."""
    check.vector(x=x)
    check.real(**parts)
    (name, matrix), (_, right) = parts.items()
    shape = (*jnp.shape(right), jnp.size(x))
    check.shapes("For many, use `jax.vmap`.", **{name: (matrix, shape)})
