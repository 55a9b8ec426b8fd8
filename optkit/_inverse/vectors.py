"""Vectors for iterative methods: scaled, in float32 or wider."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array

from .._tree import common_dtype, dot
from .._types import Params, wide_dtype


def check_matrix_free(call: str, operator: lx.AbstractLinearOperator) -> None:
    """Raises where a method for symmetric operators got one not known to be."""
    if not lx.is_symmetric(operator) and not lx.is_positive_semidefinite(operator):
        raise ValueError(
            f"`{call}` needs a symmetric operator, got `{type(operator).__name__}` "
            f"that is not known to be. If it is, tag it: `lx.TaggedLinearOperator("
            f"operator, lx.symmetric_tag)`, in Optimistix `tags=`. Else use "
            f"`lx.GMRES(...)` or `lx.Normal(lx.CG(...))`."
        )


def normalised(vector: Params) -> tuple[Params, Array]:
    """The vector in float32 or wider over its norm, and the norm; 0 stays 0.

    The size of the largest entry is divided out first, so that no square under- or
    overflows.

    Returns:
        The scaled vector, and the norm, which is 1 for a vector of zeros.
    """
    b, scale = over_peak(vector)
    norm = jnp.sqrt(dot(b, b))
    norm = jnp.where(norm == 0, 1, norm)
    return jax.tree.map(lambda a: a / norm.astype(a.dtype), b), norm * scale


def over_peak(vector: Params) -> tuple[Params, Array]:
    """The vector in float32 or wider over the size of its largest entry; 0 stays 0.

    Returns:
        The scaled vector, whose largest entry is in [1, 4); and the power of two that
        scaled it, 1 for a vector of zeros, NaN or infinite if an entry is.
    """
    dtype = common_dtype(vector)
    peaks = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(vector)]
    peak = jnp.asarray(0, dtype)
    for p in peaks:
        peak = jnp.maximum(peak, lax.stop_gradient(p).astype(dtype))
    peak = jnp.where(peak == 0, 1, peak)
    scale, inverse = _power_of_two(peak)

    def scaled(a: Array) -> Array:
        # Its own dtype may not hold the scale of a wider leaf.
        return (a.astype(dtype) * inverse).astype(wide_dtype(a))

    return jax.tree.map(scaled, vector), scale


# Division by 1e38 is no way to do it: a compiler may multiply by the reciprocal, which
# is below the smallest normal float and flushed to zero. So may it be if it sees two
# divisions in a row. A power of two and its reciprocal are made from exponent bits.
def _power_of_two(x: Array) -> tuple[Array, Array]:
    """The power of two below x > 0, within the range of reciprocals, and its own."""
    info = jnp.finfo(x.dtype)

    def bits(x: float) -> Any:
        return np.asarray(x, info.dtype).view(f"uint{info.bits}")

    largest = np.asarray(2.0 ** (info.maxexp - 2), info.dtype)
    exponent = lax.bitcast_convert_type(x, bits(0.0).dtype) & bits(np.inf)
    floor = lax.bitcast_convert_type(exponent, info.dtype)
    power = lax.clamp(np.asarray(info.tiny, info.dtype), floor, largest)
    reciprocal = 2 * bits(1.0) - lax.bitcast_convert_type(power, bits(0.0).dtype)
    inverse = lax.bitcast_convert_type(reciprocal, info.dtype)
    return lax.select(lax.is_finite(x), power, x), inverse


def tolerances(rtol: Any, vector: Params) -> tuple[Array, Array, Array]:
    """What an iterative method wants of |b - A x| / |b|.

    Args:
        rtol: as the user gave it, or None.
        vector: b.

    Returns:
        Of the residual by recurrence, which is some eps off, when it is time to look at
        the true one; what that is to reach; and what will do where it cannot, which
        for a number is the same.
    """
    dtype = common_dtype(vector)
    eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(vector)])
    least, margin, enough = (
        jnp.asarray(x, dtype) for x in (4 * eps, 8 * eps, eps**0.5)
    )
    wanted = jnp.maximum(jnp.asarray(1e-5 if rtol is None else rtol, dtype), least)
    aim = jnp.maximum(wanted - margin, wanted / 2)
    return aim, wanted, jnp.maximum(wanted, enough) if rtol is None else wanted


def widened(tree: Params) -> Params:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a)), tree)


def cast_like(tree: Params, like: Params) -> Params:
    """The tree in the dtypes of another."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def add(y: Params, a: Array, x: Params) -> Params:
    """Y + a x in the dtypes of y."""
    return jax.tree.map(lambda y, x: y + a.astype(y.dtype) * x.astype(y.dtype), y, x)
