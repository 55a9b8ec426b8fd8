"""Functions of each entry of a tree and of weights that are a prefix of it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PyTree

from .._check import (
    check_non_negative,
    check_real,
)
from .._types import wide_dtype

Strength = Any
"""A non-negative number or array, or a prefix tree of them."""


def map_entries(
    call: str,
    one: Callable[..., Array],
    v: PyTree,
    step_size: ArrayLike,
    **strengths: Strength,
) -> PyTree:
    """Maps `one(v, t, *strengths)` over the leaves, in float32 or wider."""
    check_real(call, "v", v)
    check_non_negative(call, "step_size", step_size)
    full = [_spread(call, name, x, v) for name, x in strengths.items()]

    def wide(x: Array, *weights: Any) -> Array:
        dtype = wide_dtype(x)
        rest = [jnp.asarray(w, dtype) for w in (step_size, *weights)]
        y = one(jnp.asarray(x).astype(dtype), *rest)
        if y.shape != jnp.shape(x):
            raise ValueError(
                f"`{call}` got a strength that does not broadcast against its leaf of "
                f"shape {jnp.shape(x)}: together they have {y.shape}. Pass one "
                f"number, or one for each entry."
            )
        return y.astype(jnp.result_type(x))

    return jax.tree.map(wide, v, *full)


def _spread(call: str, name: str, strength: Strength, v: PyTree) -> PyTree:
    """The strength as a tree like v."""
    for leaf in jax.tree.leaves(strength):
        if jnp.ndim(leaf) == 0:
            check_non_negative(call, name, leaf)
    try:
        return jax.tree.broadcast(strength, v)
    except ValueError as error:
        raise ValueError(
            f"`{call}` needs {name} to be a number or a prefix of v, got another "
            f"structure. Pass one number, or a tree like v.\n"
            f"  {name}: {jax.tree.structure(strength)}\n  v: {jax.tree.structure(v)}"
        ) from error
