"""The shell of projections: sets that may be empty, and points split over devices."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._vector import place_like


def like(p: Array, x: Array) -> Array:
    """The array p in the dtype of x and, on an explicit mesh, split like x."""
    return place_like(p.astype(jnp.result_type(x)), x)


@jax.custom_jvp
def nan_if_empty(is_met: Bool[Array, ""], p: Array, *parts: Array) -> Float[Array, "*"]:
    """The point p of a set with these parts; NaN if the set has no point."""
    del parts
    return jnp.where(is_met, p, jnp.nan)


# For an empty set, derivatives are NaN, too; those of `jnp.where` would be 0.
@nan_if_empty.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    is_met, p, *_ = primals
    _, dp, *moves = tangents
    # Parts that p does not depend on, such as the side of an inactive row, get NaN
    # derivatives as well.
    zero = jnp.where(is_met, 0, jnp.nan).astype(p.dtype)
    rest = sum((jnp.sum(move) for move in moves), jnp.zeros_like(zero))
    return nan_if_empty(*primals), dp + zero * (dp + rest)
