"""Projections onto the transport polytope: matrices with given row and column sums."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._check import Check
from .._types import wide_dtype
from .._vector import gathered
from .affine import product, pseudo_inverse
from .marginals import ENTROPIC, EUCLIDEAN, bordered, outer_sum, with_sums
from .sets import like, nan_if_empty


def transport(x: Array, row_sums: Array, column_sums: Array) -> Float[Array, "a b"]:
    """Returns the nearest matrix P >= 0 with row sums r >= 0 and column sums c >= 0.

    P = argmin ½|P - x|². With x = -costs/ε, this is optimal transport with quadratic
    regularisation, whose plans are sparse. It needs Σ c = Σ r; derivatives in r and c
    hold jointly, along changes that keep this equality.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x, half = jnp.array([[1.0, 0.0], [0.0, 0.5]]), jnp.array([0.5, 0.5])
        >>> print(ok.projections.transport(x, half, half).round(3))
        [[0.5 0. ]
         [0.  0.5]]

    Reference:
        Blondel, Seguy and Rolet 2018, arXiv:1710.06276, equation 7.
    """
    x_, r, c = _checked(Check("ok.projections.transport"), x, row_sums, column_sums)
    Y, is_solved = with_sums(EUCLIDEAN, *lax.stop_gradient((x_, r, c)))
    # On its support P is affine in (α, β), which solve a linear system there. The
    # matrix is constant, and singular along each connected component of the support.
    support = Y > 0
    inside = jnp.where(support, _moving_with(Y, x_), 0)
    right = jnp.concatenate([r - inside.sum(1), c - inside.sum(0)])
    z = product(pseudo_inverse(bordered(support.astype(x_.dtype))), right)
    plan = jnp.where(support, inside + outer_sum(z, x_), 0)
    # A negative entry reveals a wrong support, unless it is rounding, which becomes 0.
    tolerance = jnp.sqrt(jnp.finfo(x_.dtype).eps) * jnp.sum(r)
    is_solved = is_solved & jnp.all(plan >= -tolerance)
    plan = plan + lax.stop_gradient(jnp.maximum(plan, 0) - plan)
    return like(nan_if_empty(is_solved, plan, x_, r, c), x)


def kl_transport(x: Array, row_sums: Array, column_sums: Array) -> Float[Array, "a b"]:
    """Returns the positive matrix nearest to exp(x) with given row and column sums.

    P = argmin Σ P log P - P x. With x = -costs/ε, this is entropy-regularised optimal
    transport, solved to convergence. It needs r > 0, c > 0 and Σ c = Σ r; derivatives
    hold as for `ok.projections.transport`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x, sums = jnp.array([[jnp.log(9.0), 0], [0, 0]]), jnp.array([2.0, 2.0])
        >>> print(ok.projections.kl_transport(x, sums, sums).round(2))
        [[1.5 0.5]
         [0.5 1.5]]

    Reference:
        Blondel, Seguy and Rolet 2018, arXiv:1710.06276, equation 7.
    """
    x_, r, c = _checked(Check("ok.projections.kl_transport"), x, row_sums, column_sums)
    Y, is_solved = with_sums(ENTROPIC, *lax.stop_gradient((x_, r, c)))
    Y = _moving_with(Y, x_)
    # α + t, β - t give the same P for any t. Choose the one with Σα = Σβ.
    gauge = jnp.concatenate([jnp.ones_like(r), -jnp.ones_like(c)])
    weight = lax.stop_gradient(jnp.sum(r)) / gauge.size

    def residual(z: Array) -> Array:
        plan = jnp.exp(Y + outer_sum(z, Y))
        sums = jnp.concatenate([plan.sum(1) - r, plan.sum(0) - c])
        return sums + weight * gauge * jnp.mean(gauge * z)

    def tangent_solve(linear: Callable[[Array], Array], right: Array) -> Array:
        return jnp.linalg.solve(jax.jacfwd(linear)(right), right)

    start = jnp.zeros_like(Y, shape=gauge.shape)
    z = lax.custom_root(residual, start, lambda _, z: z, tangent_solve)
    plan = jnp.exp(Y + outer_sum(z, Y))
    return like(nan_if_empty(is_solved, plan, x_, r, c), x)


def birkhoff(x: Array) -> Float[Array, "n n"]:
    """Returns the nearest doubly stochastic matrix: `transport` with all sums 1.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[0.6, 0.2], [0.0, 0.8]])
        >>> print(ok.projections.birkhoff(x).round(3))
        [[0.8 0.2]
         [0.2 0.8]]
    """
    ones = _ones(Check("ok.projections.birkhoff"), x)
    return transport(x, ones, ones)


def kl_birkhoff(x: Array) -> Float[Array, "n n"]:
    """Returns the doubly stochastic P nearest to exp(x): `kl_transport`, all sums 1.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> x = jnp.array([[jnp.log(9.0), 0.0], [0.0, 0.0]])
        >>> print(ok.projections.kl_birkhoff(x).round(2))
        [[0.75 0.25]
         [0.25 0.75]]
    """
    ones = _ones(Check("ok.projections.kl_birkhoff"), x)
    return kl_transport(x, ones, ones)


def _moving_with(Y: Array, x: Array) -> Array:
    """Y with the derivative of x, from which it differs by a constant."""
    return Y + (x - lax.stop_gradient(x))


def _checked(check: Check, x: Array, r: Array, c: Array) -> tuple[Array, Array, Array]:
    """The checked arguments, in float32 or wider."""
    check.vector(row_sums=r, column_sums=c)
    check.real(x=x)
    check.shapes("For many, use `jax.vmap`.", x=(x, (jnp.size(r), jnp.size(c))))
    x_, r, c = (a.astype(wide_dtype(x)) for a in gathered((x, r, c)))
    return x_, r, c


def _ones(check: Check, x: Array) -> Array:
    check.real(x=x)
    check.shapes("It must be square.", x=(x, (len(x), len(x))))
    return jnp.ones(x.shape[0], x.dtype)
