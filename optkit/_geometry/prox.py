"""Proximal operators, public as `ok.prox`: one step towards a non-smooth minimum.

    prox(v, strength, t) = argmin_y ½|y - v|² + t r(y, strength)

v is any pytree of real leaves, and `step_size` is t >= 0. The result is a pytree like
v, computed in float32 or wider. It is differentiable in v, in the strength and in t
wherever the minimum is; elsewhere its derivative is finite. A strength, such as l1 or
l2, is one number for all entries, or a prefix of v whose leaves broadcast against v's,
for example with one weight per entry. A negative number, or a strength that is not a
prefix of v, raises a `ValueError`.

`ok.optimality.proximal_gradient` calls `prox(v, args, t)`, so pass it

    lambda v, args, t: ok.prox.lasso(v, args["l1"], t)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .entrywise import Strength, map_entries
from .shrinkage import group_lasso as group_lasso, nuclear as nuclear


def none(v: PyTree, strength: Any = None, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns v, the prox of r = 0."""
    del strength, step_size
    return v


def lasso(v: PyTree, l1: Strength, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of r(y) = Σ l1 |y|, soft-thresholding.

        y = sign(v) max(|v| - t l1, 0)

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.lasso(jnp.array([3.0, -0.5, -2.0]), 1.0))
        [ 2. -0. -1.]
    """
    return map_entries("lasso", lambda v, t, l1: _soft(v, t * l1), v, step_size, l1=l1)


def non_negative_lasso(v: PyTree, l1: Strength, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of r(y) = Σ l1 y on y >= 0.

        y = max(v - t l1, 0)

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.non_negative_lasso(jnp.array([3.0, 0.5, -2.0]), 1.0))
        [2. 0. 0.]
    """

    def one(v: Array, t: Array, l1: Array) -> Array:
        return jax.nn.relu(v - t * l1)

    return map_entries("non_negative_lasso", one, v, step_size, l1=l1)


def ridge(v: PyTree, l2: Strength, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of r(y) = ½ Σ l2 y².

        y = v / (1 + t l2)

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.ridge(jnp.array([3.0, -6.0]), 2.0))
        [ 1. -2.]
    """
    return map_entries("ridge", lambda v, t, l2: v / (1 + t * l2), v, step_size, l2=l2)


def non_negative_ridge(v: PyTree, l2: Strength, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of r(y) = ½ Σ l2 y² on y >= 0.

        y = max(v, 0) / (1 + t l2)

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.non_negative_ridge(jnp.array([3.0, -6.0]), 2.0))
        [1. 0.]
    """

    def one(v: Array, t: Array, l2: Array) -> Array:
        return jax.nn.relu(v) / (1 + t * l2)

    return map_entries("non_negative_ridge", one, v, step_size, l2=l2)


def elastic_net(
    v: PyTree, l1: Strength, l2: Strength, step_size: ArrayLike = 1.0
) -> PyTree:
    """Returns the prox of r(y) = Σ l1 |y| + ½ Σ l2 y².

        y = sign(v) max(|v| - t l1, 0) / (1 + t l2)

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.elastic_net(jnp.array([3.0, -0.5, -2.0]), 1.0, 1.0))
        [ 1.  -0.  -0.5]
    """

    def one(v: Array, t: Array, l1: Array, l2: Array) -> Array:
        return _soft(v, t * l1) / (1 + t * l2)

    return map_entries("elastic_net", one, v, step_size, l1=l1, l2=l2)


def _soft(v: Array, threshold: Array) -> Array:
    y = jnp.sign(v) * jax.nn.relu(jnp.abs(v) - threshold)
    # At v = 0 with threshold 0 the derivative is 1, but that of the product is 0.
    return jnp.where((threshold <= 0) & (v == 0), v, y)
