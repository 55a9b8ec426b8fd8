"""Steps of mirror descent, whose fixed point is a solution: part of `ok.optimality`."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .._check import Check
from .._types import wide_dtype
from .._vector import axpy, cast_like
from .pieces import Map, Objective, checked_like, gradient_of


def mirror_descent(
    objective: Objective,
    mirror_map: Callable[[PyTree], PyTree],
    projection: Callable[[PyTree, PyTree], PyTree],
    step_size: ArrayLike = 1.0,
) -> Map:
    """Returns a step of mirror descent, in the geometry of a convex potential ϕ.

        T(y, args) = projection(∇ϕ(y) - η ∇_y objective(y, args), args)

    `mirror_map` is ∇ϕ, from y to a pytree like y. `projection` takes `(z, args)` to
    argmin_y ϕ(y) - ⟨z, y⟩ over the set. The Jacobian of T is not symmetric.

    For the entropy on the simplex, use `ok.optimality.exponentiated_gradient`: it is
    the same map, but stays correct if an entry of the solution is 0.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> softmax = lambda z, c: jax.nn.softmax(z)
        >>> T = ok.optimality.mirror_descent(jnp.vdot, jnp.log, softmax)
        >>> print(T(jnp.array([0.5, 0.5]), jnp.array([0.0, jnp.log(3.0)])).round(2))
        [0.75 0.25]
    """
    check = Check("ok.optimality.mirror_descent")
    check.positive(step_size=step_size)
    gradient = gradient_of(check, objective)
    check.function(mirror_map=mirror_map, projection=projection)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        dual = checked_like(check, "mirror_map(y)", mirror_map(y), y)
        z = axpy(-jnp.asarray(step_size), gradient(y, args), dual)
        return checked_like(check, "projection(z, args)", projection(z, args), y)

    return mapping


def exponentiated_gradient(objective: Objective, step_size: ArrayLike = 1.0) -> Map:
    """Returns a step of mirror descent by entropy, for minima over the simplex.

        T(y, args) = y exp(-η g) / Σ y exp(-η g)        g = ∇_y objective(y, args)

    Each leaf is a probability vector along its last axis, or a stack of such vectors.
    The logarithm of y is never taken, so entries of the solution may be 0. The Jacobian
    of T is not symmetric.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.exponentiated_gradient(jnp.vdot)
        >>> print(T(jnp.array([0.5, 0.5]), jnp.array([0.0, jnp.log(3.0)])).round(2))
        [0.75 0.25]
    """
    check = Check("ok.optimality.exponentiated_gradient")
    check.positive(step_size=step_size)
    gradient = gradient_of(check, objective)

    def one(y: Array, g: Array) -> Array:
        dtype = wide_dtype(y)
        y, g = jnp.asarray(y).astype(dtype), g.astype(dtype)
        z = -jnp.asarray(step_size, dtype) * g
        # The largest exponent with y > 0. It cancels, and so does its derivative.
        peak = jnp.max(jnp.where(y > 0, z, -jnp.inf), axis=-1, keepdims=True)
        # Larger exponents are at entries that are 0, and would give 0 times infinity.
        most = math.log(float(jnp.finfo(dtype).max)) / 2
        weights = y * jnp.exp(jnp.minimum(z - jax.lax.stop_gradient(peak), most))
        return weights / jnp.sum(weights, axis=-1, keepdims=True)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        return cast_like(jax.tree.map(one, y, gradient(y, args)), y)

    return mapping
