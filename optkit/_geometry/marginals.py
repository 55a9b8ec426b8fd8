"""Newton's method for matrices with given row and column sums.

α are dual variables of the rows and β of the columns. With ϕ(z) = ½ max(z, 0)² for the
Euclidean projection of x, and ϕ(z) = exp(z) for the Kullback-Leibler projection,

    P = ϕ'(Y),  Y = x + α 1ᵀ + 1 βᵀ
    (α, β) = argmin  Σ ϕ(Y) - rᵀα - cᵀβ

which is a convex problem in a + b unknowns for an (a, b) matrix. The iteration stores Y
rather than α and β, so P has no cancellation, however large x is compared to the sums.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_MAX_STEPS = 500
_MAX_HALVINGS = 100


class _Potential(NamedTuple):
    """ϕ' and ϕ'', a ridge for ϕ'' from the error, the first Y, and a line search."""

    slope: Callable[[Array], Array]
    curvature: Callable[[Array], Array]
    ridge: Callable[[Array], Array]
    start: Callable[[Array, Array, Array], Array]
    move: Callable[[Array, Array, Array, Array, Array], Array]


def _rows_first(x: Array, r: Array, c: Array) -> Array:
    """An α large enough for one entry of each row."""
    del c
    return x - jnp.max(x, axis=1, keepdims=True) + r[:, None]


# Along Y + t E the dual's slope, Σ max(Y + t E, 0) E - (rᵀdα + cᵀdβ), grows with t. It
# is linear between the values of t at which an entry is 0; bisection finds the piece.
# If the Hessian is singular, a direction may be long: only the exact minimum is safe.
def _to_the_minimum(Y: Array, E: Array, linear: Array, r: Array, c: Array) -> Array:
    """The exact line search of the piecewise quadratic dual."""
    del r, c
    is_moving = E != 0
    t = jnp.where(is_moving, -Y / jnp.where(is_moving, E, 1), -1).ravel()
    t = jnp.sort(jnp.where(jnp.isfinite(t), jnp.maximum(t, 0), 0))
    t = jnp.concatenate([jnp.zeros_like(t[:1]), t, 2 * t[-1:] + 1])

    def slope(t: Array) -> Array:
        return jnp.vdot(jnp.maximum(Y + t * E, 0), E) - linear

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        below = slope(t[middle]) <= 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    zero = jnp.zeros_like(t, jnp.int32, shape=())
    ends = zero, zero + (t.size - 1)
    low, high = lax.fori_loop(0, math.ceil(math.log2(t.size)), halve, ends)
    is_positive = Y + (t[low] + t[high]) / 2 * E > 0
    square = jnp.sum(jnp.where(is_positive, E**2, 0))
    rest = -slope(t[low]) / jnp.where(square > 0, square, 1)
    return Y + (t[low] + jnp.where(square > 0, rest, 0)) * E


def _sinkhorn(Y: Array, r: Array, c: Array) -> Array:
    """β from α, then α from β. Each is an exact minimum, so the dual never rises."""
    Y = Y + (jnp.log(c) - jax.nn.logsumexp(Y, axis=0))[None]
    return Y + (jnp.log(r) - jax.nn.logsumexp(Y, axis=1))[:, None]


def _halve_and_sweep(Y: Array, E: Array, linear: Array, r: Array, c: Array) -> Array:
    """Halves the step until it descends, takes it, then applies `_sinkhorn`."""
    value = jnp.sum(jnp.exp(Y))
    slope = jnp.vdot(jnp.exp(Y), E) - linear

    def is_too_long(search: tuple[Array, Array]) -> Array:
        t, j = search
        change = jnp.sum(jnp.exp(Y + t * E)) - value - t * linear
        bound = 1e-4 * t * slope + 10 * jnp.finfo(Y.dtype).eps * value
        return ~(change <= bound) & (j < _MAX_HALVINGS)

    start = jnp.ones_like(value), jnp.zeros_like(value, jnp.int32)
    t, j = lax.while_loop(is_too_long, lambda s: (s[0] / 2, s[1] + 1), start)
    return jnp.where(j < _MAX_HALVINGS, _sinkhorn(Y + t * E, r, c), Y)


EUCLIDEAN = _Potential(
    jax.nn.relu,
    lambda Y: (Y > 0).astype(Y.dtype),
    lambda error: jnp.full_like(error, 3e-6),
    _rows_first,
    _to_the_minimum,
)
ENTROPIC = _Potential(
    jnp.exp,
    jnp.exp,
    lambda error: jnp.clip(error, jnp.finfo(error.dtype).eps, 1e-3),
    _sinkhorn,
    _halve_and_sweep,
)


def with_sums(
    phi: _Potential, x: Array, r: Array, c: Array
) -> tuple[Float[Array, "a b"], Array]:
    """Y by Newton's method, and whether it has converged."""
    eps = jnp.finfo(x.dtype).eps
    sums, mass = jnp.concatenate([r, c]), jnp.sum(r)
    gauge = jnp.concatenate([jnp.ones_like(r), -jnp.ones_like(c)])
    eye = jnp.eye(gauge.size, dtype=x.dtype)
    tolerance = 4 * eps * jnp.max(sums)

    def gradient(Y: Array) -> Array:
        plan = phi.slope(Y)
        return jnp.concatenate([plan.sum(1) - r, plan.sum(0) - c])

    # A long step can round x away: then Y is not x + α 1ᵀ + 1 βᵀ, and P not nearest.
    def offsets(Y: Array) -> Array:
        D = Y - x
        return D.mean(1, keepdims=True) + D.mean(0, keepdims=True) - D.mean()

    def is_adrift(Y: Array) -> Array:
        size = jnp.max(jnp.abs(x), initial=0) + jnp.max(sums, initial=0)
        return jnp.max(jnp.abs(Y - x - offsets(Y)), initial=0) > jnp.sqrt(eps) * size

    def step(carry: Any) -> Any:
        Y, g, k, _ = carry
        H = bordered(phi.curvature(Y))
        top = jnp.max(jnp.diagonal(H), initial=eps)
        ridge = top * phi.ridge(jnp.max(jnp.abs(g)) / mass)
        H = H + ridge * eye + top / gauge.size * jnp.outer(gauge, gauge)
        d = -jnp.linalg.solve(H, g)
        new = phi.move(Y, outer_sum(d, Y), jnp.vdot(sums, d), r, c)
        new = jnp.where(is_adrift(new), x + offsets(new), new)
        return new, gradient(new), k + 1, jnp.all(new == Y)

    def goes_on(carry: Any) -> Array:
        _, g, k, is_stuck = carry
        return (jnp.max(jnp.abs(g)) > tolerance) & (k < _MAX_STEPS) & ~is_stuck

    Y = phi.start(x, r, c)
    zero = jnp.zeros_like(Y, int, shape=())
    start = Y, gradient(Y), zero, jnp.zeros_like(zero, bool)
    Y, g, _, _ = lax.while_loop(goes_on, step, start)
    # If r and c have different sums, no P makes the gradient zero.
    is_met = jnp.max(jnp.abs(g), initial=0) <= jnp.sqrt(eps) * mass
    return Y, is_met & ~is_adrift(Y)


def outer_sum(z: Array, like: Array) -> Array:
    """α 1ᵀ + 1 βᵀ."""
    a = like.shape[0]
    return z[:a, None] + z[None, a:]


def bordered(weights: Float[Array, "a b"]) -> Float[Array, "n n"]:
    """The Hessian in (α, β) of a separable sum with these second derivatives."""
    rows, columns = jnp.diag(weights.sum(1)), jnp.diag(weights.sum(0))
    return jnp.block([[rows, weights], [weights.T, columns]])
