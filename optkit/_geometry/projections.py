"""Projections that `optax.projections` lacks, public as `ok.projections`.

    p = argmin ½|p - x|² over a convex set

Each takes the point x first and returns p with the shape and dtype of x. If the set is
empty, p and all its derivatives are NaN. Each is exact: iterations, if any, only find
the constraints that hold with equality, and p then has a closed form, which is
differentiated. So derivatives of every order and in every mode, in the point and in the
parameters of the set, are correct wherever they exist. At a kink, where a constraint
could be dropped without moving p, the derivative in x is one element of the generalised
Jacobian. Arguments of other shapes raise a `ValueError`, and leaves that are not real a
`TypeError`.

`optax.projections` has: box, halfspace, hypercube, hyperplane, ℓ1 ball and sphere, ℓ2
ball and sphere, ℓ∞ ball, non-negative, simplex, vector.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from .._check import Check
from .._types import wide_dtype
from .._vector import gathered, safe_norm
from .affine import affine_set as affine_set
from .polyhedron import polyhedron as polyhedron
from .sets import like, nan_if_empty
from .transport import (
    birkhoff as birkhoff,
    kl_birkhoff as kl_birkhoff,
    kl_transport as kl_transport,
    transport as transport,
)


def box_section(
    x: Array,
    lower: ArrayLike,
    upper: ArrayLike,
    weights: ArrayLike,
    total: ArrayLike,
) -> Float[Array, " n"]:
    """Returns the nearest vector with lower <= p <= upper and weightsᵀp = total.

        p = clip(x + τ weights, lower, upper),  τ such that weightsᵀp = total

    Bounds and weights are one number, or one per entry of x. Bounds may be infinite,
    and weights may have any sign.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([0.9, 0.4, -0.5])
        >>> print(ok.projections.box_section(x, 0.0, 0.6, 1.0, 1.0).round(3))
        [0.6 0.4 0. ]
    """
    check = Check("ok.projections.box_section")
    check.vector(x=x)
    bounds = {"lower": lower, "upper": upper, "weights": weights}
    for name, array in bounds.items():
        if jnp.ndim(array):
            check.shapes("One number works too.", **{name: (array, x.shape)})
    dtype = wide_dtype(x)
    x_ = x.astype(dtype)
    l, u, w = (  # noqa: E741
        jnp.zeros_like(x_) + jnp.asarray(a, dtype) for a in (lower, upper, weights)
    )
    total = jnp.asarray(total, dtype)
    p, is_met = _box_section(x_, l, u, w, total)
    return like(nan_if_empty(is_met, p, x_, l, u, w, total), x)


def sparse_simplex(
    x: Array, max_nonzero: int, scale: ArrayLike = 1.0
) -> Float[Array, " n"]:
    """Returns the nearest point of the simplex with at most `max_nonzero` nonzeros.

    It keeps the `max_nonzero` largest entries of the vector x and projects them onto
    p >= 0, Σ p = scale. The set is not convex: of entries that tie for the last place,
    the first ones are kept. `max_nonzero` is from 1 to the size of x.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([2.0, 1.5, 0.0])
        >>> print(ok.projections.sparse_simplex(x, 2))
        [0.75 0.25 0.  ]

    Reference:
        Kyrillidis, Becker, Cevher and Koch 2013, arXiv:1206.1529, algorithm 1.
    """
    check = Check("ok.projections.sparse_simplex")
    check.vector(x=x)
    check.count(max_nonzero=max_nonzero)
    check.at_most(x.size, "the number of entries of x", max_nonzero=max_nonzero)
    x_ = gathered(x)
    largest, index = lax.top_k(x_, max_nonzero)
    kept = box_section(largest, 0.0, jnp.inf, 1.0, scale)
    p = jnp.zeros_like(x_).at[index].set(kept)
    return like(nan_if_empty(~jnp.any(jnp.isnan(kept)), p, x_), x)


def second_order_cone(x: Array) -> Float[Array, " n"]:
    """Returns the nearest point of the cone |v| <= t, with x = (t, v).

        p = x                              if |v| <= t
        p = 0                              if |v| <= -t
        p = ½ (|v| + t) (1, v / |v|)       otherwise

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.projections.second_order_cone(jnp.array([0.0, 3.0, 4.0])))
        [2.5 1.5 2. ]
    """
    check = Check("ok.projections.second_order_cone")
    check.vector(x=x)
    check.that(x.size, "needs x = (t, v), got an empty x.")
    x_ = x.astype(wide_dtype(x))
    is_first = jnp.arange(x.size) == 0
    t, v = jnp.sum(jnp.where(is_first, x_, 0)), jnp.where(is_first, 0, x_)
    norm = safe_norm(v)
    unit = jnp.where(is_first, 1, v / jnp.where(norm > 0, norm, 1))
    edge = 0.5 * (norm + t) * unit
    p = jnp.where(norm <= t, x_, jnp.where(norm <= -t, 0, edge))
    return p.astype(x.dtype)


# wᵀclip(x + τ w, l, u) grows with τ. It is linear between the breakpoints at which an
# entry meets a bound. Bisection over the sorted breakpoints finds the piece, and with
# it the free entries; on the piece, τ solves a linear equation.
def _box_section(
    x: Array,
    l: Array,  # noqa: E741
    u: Array,
    w: Array,
    total: Array,
) -> tuple[Array, Array]:
    """`box_section` in one dtype, and whether the result is in the set."""
    is_moving = w != 0
    by = jnp.where(is_moving, w, 1)
    ends = lax.stop_gradient(((l - x) / by, (u - x) / by))
    first = jnp.where(is_moving, jnp.minimum(*ends), -jnp.inf)
    last = jnp.where(is_moving, jnp.maximum(*ends), -jnp.inf)
    both = jnp.concatenate(gathered((first, last)))
    far = 2 * jnp.max(jnp.where(jnp.isfinite(both), jnp.abs(both), 0), initial=0) + 1
    points = jnp.sort(
        jnp.concatenate([jnp.clip(both, -far, far), jnp.stack([-far, far])])
    )
    fixed = lax.stop_gradient((x, l, u, w, total))

    def excess(tau: Array) -> Array:
        x, l, u, w, total = fixed  # noqa: E741
        return jnp.sum(w * jnp.clip(x + tau * w, l, u)) - total

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) // 2
        below = excess(points[middle]) <= 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    zero = jnp.zeros_like(points, jnp.int32, shape=())
    start = (zero, zero + (points.size - 1))
    low, high = lax.fori_loop(0, math.ceil(math.log2(points.size)), halve, start)
    tau = (points[low] + points[high]) / 2
    is_free = (first < tau) & (tau < last)
    held = jnp.where(is_moving, jnp.where((w > 0) == (last <= tau), u, l), 0)
    held = jnp.where(is_moving, held, jnp.clip(x, l, u))
    eps = jnp.finfo(x.dtype).eps
    # If wᵀp is met at a point where no entry is between its bounds, all stay at them.
    is_stuck = ~jnp.any((first < points[low]) & (points[low] < last))
    size = jnp.sum(jnp.abs(w * jnp.where(is_free, x, held)))
    is_stuck = is_stuck & (excess(points[low]) >= -10 * eps * size)
    p = jnp.where(is_free & ~is_stuck, x, held)  # not a bound, which may be infinite
    square = jnp.sum(jnp.where(is_free, w * w, 0))
    tau = (total - jnp.sum(w * p)) / jnp.where(square > 0, square, 1)
    p = jnp.where(is_free, p + tau * w, p)
    size = jnp.abs(total) + jnp.sum(jnp.abs(w * p))
    tolerance = jnp.sqrt(eps) * size
    slack = tolerance / jnp.maximum(jnp.max(jnp.abs(w), initial=0), 1)
    is_met = jnp.abs(jnp.sum(w * p) - total) <= tolerance
    return p, is_met & jnp.all((l <= u) & (p >= l - slack) & (p <= u + slack))
