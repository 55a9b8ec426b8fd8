"""Functions of each entry of a tree and of weights that are a prefix of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .._check import Check
from .._types import wide_dtype

Strength = Any
"""A non-negative number or array, or a prefix tree of them."""


def map_entries(
    check: Check,
    one: Callable[..., Array],
    v: PyTree,
    step_size: ArrayLike,
    **strengths: Strength,
) -> PyTree:
    """Maps `one(v, t, *strengths)` over the leaves, in float32 or wider."""
    check.real(v=v)
    check.non_negative(step_size=step_size)
    full = [_spread(check, name, x, v) for name, x in strengths.items()]

    def wide(x: Array, *weights: Any) -> Array:
        dtype = wide_dtype(x)
        rest = [jnp.asarray(w, dtype) for w in (step_size, *weights)]
        y = one(jnp.asarray(x).astype(dtype), *rest)
        advice = "Pass one number, or weights that broadcast against each leaf."
        check.shapes(advice, **{"the result": (y, jnp.shape(x))})
        return y.astype(jnp.result_type(x))

    return jax.tree.map(wide, v, *full)


def _spread(check: Check, name: str, strength: Strength, v: PyTree) -> PyTree:
    """The strength as a tree like v."""
    for leaf in jax.tree.leaves(strength):
        if jnp.ndim(leaf) == 0:
            check.non_negative(**{name: leaf})
    return check.prefix(name, strength, v, "v")
