"""Scaling of vectors, so that no square under- or overflows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._types import wide_dtype
from .arithmetic import dot, norm
from .structure import common_dtype


def normalised(vector: PyTree) -> tuple[PyTree, Array]:
    """Returns the vector over its norm, in float32 or wider, and the norm.

    Zeros stay zeros, with a norm of 1.
    """
    b, scale = over_peak(vector)
    size = norm(b)
    size = jnp.where(size == 0, 1, size)
    return jax.tree.map(lambda a: a / size.astype(a.dtype), b), size * scale


def over_peak(vector: PyTree) -> tuple[PyTree, Array]:
    """Returns the vector over a power of two, in float32 or wider, and that power.

    The largest entry becomes a number in [1, 4). The power is 1 for zeros, and NaN or
    infinite if an entry is.
    """
    dtype = common_dtype(vector)
    peaks = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(vector)]
    peak = jnp.asarray(0, dtype)
    for p in peaks:
        peak = jnp.maximum(peak, lax.stop_gradient(p).astype(dtype))
    peak = jnp.where(peak == 0, 1, peak)
    # XLA reorders products with constants: it would square a constant 1e20 before it
    # scales it. It does not look through a barrier.
    scale, inverse = lax.optimization_barrier(_power_of_two(peak))

    def scaled(a: Array) -> Array:
        # The leaf's own dtype may not hold the scale of a wider leaf.
        wide = a.astype(dtype)
        return jnp.where(inverse > 0, wide * inverse, wide).astype(wide_dtype(a))

    return jax.tree.map(scaled, vector), scale


def safe_norm(tree: PyTree) -> Float[Array, ""]:
    """|v| without overflow, and with derivative 0 at v = 0."""
    unit, scale = over_peak(tree)
    square = dot(unit, unit)
    is_zero = square == 0
    return jnp.where(is_zero, 0, scale * jnp.sqrt(jnp.where(is_zero, 1, square)))


def relative_norm(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """|x| / |y| without overflow, or |x| if y = 0; infinite unless both are finite."""
    (x, p), (y, q) = over_peak(x), over_peak(y)
    size = norm(y)
    ratio = norm(x) / jnp.where(size > 0, size, 1) * (p / q)
    return jnp.where(jnp.isfinite(p) & jnp.isfinite(q), ratio, jnp.inf)


# Dividing by 1e38 fails: a compiler may multiply by the reciprocal instead, which is
# below the smallest normal float and flushed to zero. The same happens if it fuses two
# divisions. So the power of two and its reciprocal are built from exponent bits.
def _power_of_two(x: Array) -> tuple[Array, Array]:
    """The power of two below x > 0 that has a reciprocal, and the reciprocal."""
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
