"""The smallest entries of a pytree, without sorting or gathering."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from .structure import common_dtype


def smallest(count: ArrayLike, tree: PyTree, mask: PyTree) -> PyTree:
    """Returns booleans that mark the `count` smallest entries where the mask is true.

    Entries are compared across leaves and should be non-negative: NaN and negative ones
    rank last. Entries that tie at the threshold are all marked. Read as integers, the
    bits of non-negative floats have the same order as the floats. So bisection on bits
    finds the threshold exactly, from counts alone.
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
