"""The smallest entries of a pytree, without sorting or gathering."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, ArrayLike, PyTree

from .structure import common_dtype


def smallest(count: ArrayLike, tree: PyTree, mask: PyTree) -> PyTree:
    """Returns booleans that mark the `count` smallest entries where the mask is true.

    Entries are compared across leaves and should be non-negative: NaN and negative ones
    rank last. Of equal entries, the first ones are marked, leaf after leaf and in C
    order. Fewer than `count` are marked only where the mask has fewer.

    Read as integers, the bits of non-negative floats have the same order as the floats.
    So bisection on bits finds the largest marked entry exactly. Bisection on places
    then finds the last of its equals. Both need only counts.
    """
    dtype, size = common_dtype(tree), optax.tree.size(tree)
    num_bits = 8 * jnp.dtype(dtype).itemsize
    unsigned = jnp.dtype(f"uint{num_bits}")

    def as_bits(x: Array) -> Array:
        return lax.bitcast_convert_type(x.astype(dtype), unsigned)

    def num_below(bits: PyTree, t: Array, mask: PyTree) -> Array:
        counts = jax.tree.map(lambda b, m: jnp.sum(m & (b < t)), bits, mask)
        return functools.reduce(jnp.add, jax.tree.leaves(counts), jnp.zeros([], int))

    bits = jax.tree.map(as_bits, tree)
    last = _bisect(lambda t: num_below(bits, t, mask) < count, unsigned, num_bits)
    equal = jax.tree.map(lambda b, m: m & (b == last), bits, mask)
    num_equal = jnp.asarray(count) - num_below(bits, last, mask)
    place = _bisect(
        lambda t: num_below(_places(tree), t, equal) < num_equal,
        jnp.dtype(jnp.uint32),
        size.bit_length(),
    )
    any_wanted = jnp.asarray(count) > 0

    def chosen(b: Array, m: Array, p: Array) -> Array:
        return m & any_wanted & ((b < last) | ((b == last) & (p <= place)))

    return jax.tree.map(chosen, bits, mask, _places(tree))


def _bisect(is_below: Callable[[Array], Array], dtype: Any, num_bits: int) -> Array:
    """The largest t for which `is_below` holds, if it holds up to there; else 0."""

    def halve(i: Array, t: Array) -> Array:
        bit = jnp.ones([], dtype) << (num_bits - 1 - i).astype(dtype)
        return jnp.where(is_below(t | bit), t | bit, t)

    return lax.fori_loop(0, num_bits, halve, jnp.zeros([], dtype))


# Computed anew where it is used: nothing the size of the tree is stored.
def _places(tree: PyTree) -> PyTree:
    """Consecutive integers from 0, leaf after leaf, each in C order."""
    leaves, treedef = jax.tree.flatten(tree)
    places, start = [], 0
    for leaf in leaves:
        place, stride = jnp.uint32(start), 1
        for axis in reversed(range(leaf.ndim)):
            step = lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
            place, stride = place + stride * step, stride * leaf.shape[axis]
        places.append(place)
        start += leaf.size
    return treedef.unflatten(places)
