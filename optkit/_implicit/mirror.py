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
    """One step of mirror descent, in the geometry of a convex potential ϕ.

        T(y, args) = projection(∇ϕ(y) - η ∇_y objective(y, args), args)

    For the entropy on the simplex, `ok.optimality.exponentiated_gradient` is the same
    map, and also right where an entry of the solution is 0.

    Args:
        objective: `(y, args)` to a real scalar.
        mirror_map: ∇ϕ, from y to a tree of its structure and shapes.
        projection: `(z, args)` to argmin_y ϕ(y) - ⟨z, y⟩ over the set.
        step_size: η.

    Returns:
        A mapping, for `ok.implicit_fixed_point`. Its Jacobian is not symmetric.

    Raises:
        ValueError: for a step size that is not positive, or a projection or mirror
            map that returns another structure or shape.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.mirror_descent(
        ...     lambda y, c: jnp.vdot(c, y),
        ...     jnp.log,
        ...     lambda z, c: jax.nn.softmax(z),
        ... )
        >>> print(T(jnp.array([0.5, 0.5]), jnp.array([0.0, jnp.log(3.0)])).round(2))
        [0.75 0.25]
    """
    check = Check("ok.optimality.mirror_descent")
    check.positive(step_size=step_size)
    gradient = gradient_of(check, objective)
    check.function(mirror_map=mirror_map)
    check.function(projection=projection)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        dual = checked_like(check, "mirror map", mirror_map(y), y)
        z = axpy(-jnp.asarray(step_size), gradient(y, args), dual)
        return checked_like(check, "projection", projection(z, args), y)

    return mapping


def exponentiated_gradient(objective: Objective, step_size: ArrayLike = 1.0) -> Map:
    """Mirror descent by entropy: minima over probability vectors.

        T(y, args) = y exp(-η g) / Σ y exp(-η g)        g = ∇_y objective(y, args)

    Each leaf is a probability vector along its last axis, or a stack of them. Nothing
    takes the logarithm of y, so entries of the solution may be 0.

    Args:
        objective: `(y, args)` to a real scalar.
        step_size: η.

    Returns:
        A mapping, for `ok.implicit_fixed_point`. Its Jacobian is not symmetric.

    Raises:
        ValueError: for a step size that is not positive.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.exponentiated_gradient(lambda y, c: jnp.vdot(c, y))
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
        # The largest exponent that counts: it cancels, and so does its derivative.
        peak = jnp.max(jnp.where(y > 0, z, -jnp.inf), axis=-1, keepdims=True)
        # Above it are only entries of 0, which would be 0 times infinity.
        most = math.log(float(jnp.finfo(dtype).max)) / 2
        weights = y * jnp.exp(jnp.minimum(z - jax.lax.stop_gradient(peak), most))
        return weights / jnp.sum(weights, axis=-1, keepdims=True)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        return cast_like(jax.tree.map(one, y, gradient(y, args)), y)

    return mapping
