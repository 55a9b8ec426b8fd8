"""A Monte Carlo mean, and how far to trust it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, PyTree

from .._types import wide_dtype
from .._vector import cast_like, explicit_sharding


class Estimate(NamedTuple):
    """The mean of independent draws and its standard error, two trees alike.

    The standard error is the root of the draws' sample variance over their number k,
    with k - 1 degrees of freedom: itself uncertain by a factor 1 ± 1/√(2k) or so.
    One draw says nothing of its spread: then there is none, rather than a NaN.
    """

    mean: PyTree
    standard_error: PyTree | None


def average(draw: Callable[[Array], PyTree], key: Array, num_draws: int) -> Estimate:
    """Averages draw(key) over keys, one after the other, in constant memory.

    Args:
        draw: a random real tree from a key.
        key: a random key, consumed.
        num_draws: k >= 1.

    Returns:
        Mean and standard error, in the draws' dtypes, summed in float32 or wider.
    """
    if num_draws == 1:
        return Estimate(draw(key), None)
    keys = jr.split(key, num_draws)
    shapes = jax.eval_shape(draw, keys[0])
    zeros = jax.tree.map(_wide_zeros, shapes)

    # Welford's update: exact where all draws are equal, unlike mean(x²) - mean(x)².
    def add(carry: Any, step: Any) -> tuple[Any, None]:
        (mean, squares), (k, key) = carry, step
        x = jax.tree.map(lambda x, m: x.astype(m.dtype), draw(key), mean)
        delta = jax.tree.map(jnp.subtract, x, mean)
        mean = jax.tree.map(lambda m, d: m + d / k.astype(m.dtype), mean, delta)
        squares = jax.tree.map(
            lambda s, d, a, m: s + d * (a - m), squares, delta, x, mean
        )
        return (mean, squares), None

    counts = jnp.arange(1, num_draws + 1, dtype=jnp.int32)
    (mean, squares), _ = lax.scan(add, (zeros, zeros), (counts, keys))
    freedom = (num_draws - 1) * num_draws
    error = jax.tree.map(lambda s: jnp.sqrt(s / freedom), squares)
    return Estimate(*(cast_like(tree, shapes) for tree in (mean, error)))


def _wide_zeros(leaf: jax.ShapeDtypeStruct) -> Array:
    sharding = explicit_sharding(leaf)
    return jnp.zeros(leaf.shape, wide_dtype(leaf), out_sharding=sharding)
