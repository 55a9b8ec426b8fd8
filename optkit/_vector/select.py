"""The smallest entries of a pytree, without sorting or gathering them."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from .structure import common_dtype


def smallest(count: ArrayLike, tree: PyTree, mask: PyTree) -> PyTree:
    """Where the `count` smallest entries are, over all leaves together.

    The bits of a non-negative float, read as an integer, keep the order of floats. So
    the threshold is found exactly by bisection on its bits, from counts alone: nothing
    is sorted or gathered. A negative entry or a NaN counts as larger than any other.

    Args:
        count: how many, an integer; ties at the threshold go together, so there can
            be more.
        tree: real leaves, non-negative.
        mask: boolean arrays like the leaves; only entries where it is true count.

    Returns:
        Boolean arrays like the leaves.
    """
    dtype = common_dtype(tree)
    num_bits = 8 * jnp.dtype(dtype).itemsize
    unsigned = jnp.dtype(f"uint{num_bits}")

    def as_bits(x: Array) -> Array:
        return lax.bitcast_convert_type(x.astype(dtype), unsigned)

    bits = jax.tree.map(as_bits, tree)

    def num_below(t: Array) -> Array:
        counts = jax.tree.map(lambda b, m: jnp.sum(m & (b < t)), bits, mask)
        return sum(jax.tree.leaves(counts), jnp.zeros([], int))

    def halve(i: Array, t: Array) -> Array:
        bit = jnp.ones([], unsigned) << (num_bits - 1 - i).astype(unsigned)
        return jnp.where(num_below(t | bit) < count, t | bit, t)

    last = lax.fori_loop(0, num_bits, halve, jnp.zeros([], unsigned))
    any_wanted = jnp.asarray(count) > 0
    return jax.tree.map(lambda b, m: m & (b <= last) & any_wanted, bits, mask)
