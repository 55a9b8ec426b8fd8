"""Maps functions of an entry and its weights over a tree."""

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
    name: str,
    one: Callable[..., Array],
    v: PyTree,
    step_size: ArrayLike,
    **strengths: Strength,
) -> PyTree:
    """Maps `one(v, t, *strengths)` over the leaves, in float32 or wider."""
    check = Check(f"ok.prox.{name}")
    check.real(v=v)
    check.non_negative(step_size=step_size)
    for key, strength in strengths.items():
        for leaf in jax.tree.leaves(strength):
            if jnp.ndim(leaf) == 0:
                check.non_negative(**{key: leaf})
    spread = [check.prefix(key, x, v, "v") for key, x in strengths.items()]

    def wide(x: Array, *weights: Any) -> Array:
        dtype = wide_dtype(x)
        rest = [jnp.asarray(w, dtype) for w in (step_size, *weights)]
        y = one(jnp.asarray(x).astype(dtype), *rest)
        advice = "Pass one number, or weights that broadcast against each leaf."
        check.shapes(advice, **{"the result": (y, jnp.shape(x))})
        return y.astype(jnp.result_type(x))

    return jax.tree.map(wide, v, *spread)
