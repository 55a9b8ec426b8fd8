"""Monte Carlo means with standard errors."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import wide_dtype
from .._vector import cast_like, signs, subtract


class Estimate(NamedTuple):
    """The mean of k independent draws with its standard error.

    The standard error is √(sample variance / k), with k - 1 degrees of freedom. It is
    itself uncertain by a factor of about 1 ± 1/√(2k). For a single draw it is None.
    """

    mean: PyTree
    standard_error: PyTree | None


def average(draw: Callable[[Array], PyTree], key: Array, num_draws: int) -> Estimate:
    """Returns the average of draw(key) over `num_draws` keys, in constant memory.

    Sums are in float32 or wider. The results have the dtypes of the draws.
    """
    if num_draws == 1:
        return Estimate(draw(key), None)
    keys = jr.split(key, num_draws)
    shapes = jax.eval_shape(draw, keys[0])
    zeros = jax.tree.map(_wide_zeros, shapes)

    # Unlike mean(x²) - mean(x)², Welford's update is exact if all draws are equal.
    def add(carry: Any, step: Any) -> tuple[Any, None]:
        (mean, squares), (k, key) = carry, step
        x = cast_like(draw(key), mean)
        delta = subtract(x, mean)
        mean = jax.tree.map(lambda m, d: m + d / k.astype(m.dtype), mean, delta)
        squares = jax.tree.map(
            lambda s, d, a, m: s + d * (a - m), squares, delta, x, mean
        )
        return (mean, squares), None

    counts = jnp.arange(1, num_draws + 1, dtype=jnp.int32)
    (mean, squares), _ = lax.scan(add, (zeros, zeros), (counts, keys))
    freedom = float(num_draws - 1) * num_draws  # as an integer it may exceed int32
    error = jax.tree.map(lambda s: jnp.sqrt(s / freedom), squares)
    return Estimate(*(cast_like(tree, shapes) for tree in (mean, error)))


def over_probes(
    check: Check,
    operator: lx.AbstractLinearOperator,
    key: Array,
    num_probes: int,
    combine: Callable[[PyTree, PyTree], PyTree],
) -> Estimate:
    """Checks the arguments, and averages combine(z, Cz) over random signs z."""
    check.symmetric(operator)
    check.count(num_probes=num_probes)
    check.key(key)
    product, structure = lx.linearise(operator).mv, operator.in_structure()

    def draw(key: Array) -> PyTree:
        z = signs(key, structure)
        return combine(z, product(z))

    return average(draw, key, num_probes)


def _wide_zeros(leaf: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros_like(leaf, wide_dtype(leaf))  # sharded, and varying, like it
