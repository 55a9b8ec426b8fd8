"""Projections onto the solutions of linear equations and inequalities."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._check import Check
from .._types import wide_dtype
from .._vector import gathered
from .affine import check_rows, near_one, nearest, product, slack
from .sets import like, nan_if_empty

_STEPS_PER_ROW = 10


def polyhedron(
    x: Array, G: Array, h: Array, A: Array | None = None, b: Array | None = None
) -> Float[Array, " n"]:
    """Returns the nearest point with G p <= h and, if A and b are given, A p = b.

    A dual active set method finds the inequalities that hold p in place. The result is
    the projection onto the points that meet these with equality, and A p = b.
    Inequalities that hold with equality in the whole set, such as G and -G together,
    count as equations, too. Derivatives in their right-hand sides hold only for joint
    changes that leave the set nonempty.

    The projection has a kink where an inequality holds with equality and does not hold
    p in place, for example at an x on the edge of the set. Its derivative there is an
    element of the generalised Jacobian, the derivative without that inequality.

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
    check_rows(check, x, G=G, h=h)
    check.that((A is None) == (b is None), "needs both A and b, or neither.")
    if A is None or b is None:
        A, b = jnp.zeros((0, x.size), x.dtype), jnp.zeros(0, x.dtype)
    check_rows(check, x, A=A, b=b)
    parts = tuple(jnp.asarray(a).astype(wide_dtype(x)) for a in (x, G, h, A, b))
    parts = gathered(parts)
    x_, (G, h), (A_, b_) = parts[0], near_one(*parts[1:3]), near_one(*parts[3:])
    held = _held(*lax.stop_gradient((x_, G, h, A_, b_)))
    M = jnp.concatenate([A_, jnp.where(held[:, None], G, 0)])
    p, is_met = nearest(x_, M, jnp.concatenate([b_, jnp.where(held, h, 0)]))
    is_met = is_met & jnp.all(product(G, p) - h <= slack(G, h, x_, p))
    return like(nan_if_empty(is_met, p, *parts), x)


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


def _held(x: Array, G: Array, h: Array, A: Array, b: Array) -> Bool[Array, " k"]:
    """The inequalities that are equations of the face on which p moves."""
    if not h.size:
        return jnp.zeros(0, bool)
    rows = _scaled(x, G, h, A, b)
    pair = _solve(rows)
    return pair.is_active | _implied(pair, rows)


def _solve(rows: _Rows) -> _Pair:
    inactive, zero = jnp.zeros_like(rows.is_zero), jnp.zeros_like(rows.h, int, shape=())
    w, is_done = jnp.zeros_like(rows.h, shape=()), jnp.zeros_like(zero, bool)
    basis = jnp.zeros_like(rows.G)
    start = _Pair(rows.base, basis, inactive, rows.is_zero, zero, w, is_done, zero)
    limit = _STEPS_PER_ROW * (1 + sum(rows.G.shape))

    def step(pair: _Pair) -> _Pair:
        pair = _choose(pair, rows)
        moved = _move(pair, rows)
        return jax.tree.map(lambda a, b: jnp.where(pair.is_done, a, b), pair, moved)

    return lax.while_loop(
        lambda pair: ~pair.is_done & (pair.num_steps < limit), step, start
    )


# Let z be the tight rows that are not active, made orthogonal to those that are. Then p
# can move in the directions d of a cone, z d <= 0. A row is an equation if no d of the
# cone makes z_j d < 0. Let R be rows, and d the point of the cone nearest to
# v = -Σ_R z. Then |d|² = vᵀd = -Σ_R z d, so if d is not 0, some rows of R are not
# equations, and leave R. If d is 0, then v = Σ λ z with λ >= 0, so Σ_R z + Σ λ z = 0:
# all of R are equations.
def _implied(pair: _Pair, rows: _Rows) -> Bool[Array, " k"]:
    """Which tight rows hold with equality wherever p can move."""
    z, eps = rows.g, jnp.finfo(rows.g.dtype).eps
    for _ in range(2):
        z = z - product(product(z, pair.D.T), rows.g)
    norms = jnp.linalg.norm(z, axis=1)
    is_tight = jnp.abs(product(rows.G, pair.p) - rows.h) <= _reach(pair, rows)
    is_tight = is_tight & ~pair.is_active & (norms > jnp.sqrt(eps))
    z = jnp.where(is_tight[:, None], z / jnp.where(is_tight, norms, 1)[:, None], 0)

    def leave(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        R, _ = carry
        v = -product(R.astype(z.dtype), z)
        d = _solve(_Rows(v, z, z, jnp.zeros_like(norms), ~is_tight)).p
        stays = R & (product(z, d) >= -100 * eps * (1 + jnp.linalg.norm(v)))
        return stays, jnp.any(stays) & jnp.any(stays != R)

    return lax.while_loop(lambda carry: carry[1], leave, (is_tight, jnp.any(is_tight)))[
        0
    ]


def _scaled(x: Array, G: Array, h: Array, A: Array, b: Array) -> _Rows:
    base, g = x, G
    if A.shape[0]:
        points = jnp.concatenate([x[None], G])
        rights = jnp.concatenate([b[None], jnp.zeros((h.size, b.size), b.dtype)])
        points, _ = jax.vmap(nearest, (0, None, 0))(points, A, rights)
        base, g = points[0], points[1:]
    norms = jnp.linalg.norm(g, axis=1)
    is_zero = norms <= 100 * jnp.finfo(x.dtype).eps * jnp.linalg.norm(G, axis=1)
    norms = jnp.where(is_zero, 1, norms)
    return _Rows(base, g / norms[:, None], G / norms[:, None], h / norms, is_zero)


def _size(pair: _Pair, rows: _Rows) -> Float[Array, " k"]:
    """The size that one rounding of G p - h is relative to."""
    eps = jnp.finfo(pair.p.dtype).eps
    base = jnp.sqrt(eps) * jnp.linalg.norm(rows.base)
    size = jnp.maximum(jnp.linalg.norm(pair.p), base)
    return jnp.linalg.norm(rows.G, axis=1) * size + jnp.abs(rows.h)


# Rounding may move p by noise = O(eps |x|), but an x far away must not make slabs look
# thin. If p and all sides are 0, only x has a size.
def _reach(pair: _Pair, rows: _Rows) -> Float[Array, " k"]:
    """How far a row that p meets may be from p."""
    eps, size = jnp.finfo(pair.p.dtype).eps, jnp.linalg.norm(pair.p)
    noise = 20 * eps * jnp.linalg.norm(rows.base)
    side = jnp.max(jnp.where(jnp.isfinite(rows.h), jnp.abs(rows.h), 0))
    is_apex = (side == 0) & (size <= noise)
    noise = jnp.where(is_apex, noise, jnp.minimum(noise, jnp.sqrt(eps) * (size + side)))
    return noise * jnp.linalg.norm(rows.G, axis=1) + 20 * eps * _size(pair, rows)


def _choose(pair: _Pair, rows: _Rows) -> _Pair:
    """Corrects p on the active rows, and chooses the most violated row to enter."""
    residual = jnp.where(pair.is_active, product(rows.G, pair.p) - rows.h, 0)
    p = pair.p - product(pair.D.T, residual)
    tolerance = 20 * jnp.finfo(p.dtype).eps * _size(pair._replace(p=p), rows)
    excess = product(rows.G, p) - rows.h - tolerance
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
    u = jnp.maximum(product(D, rows.base - p - w * row), 0)
    r, z = jnp.zeros_like(u), row
    for _ in range(2):  # twice makes z orthogonal to the active rows
        more = product(D, z)
        r, z = r + more, z - product(g.T, more)
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
    left = D - jnp.outer(product(D, out) / square, out)
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
