"""Type aliases and dtype rules that every layer uses."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

Params: TypeAlias = PyTree
"""Any pytree whose leaves are floating or complex arrays, or None."""

ScalarOrSchedule: TypeAlias = optax.ScalarOrSchedule
"""A number, a scalar array, or a function from the step count to one of them."""

MaskOrFn: TypeAlias = PyTree[bool] | Callable[[Any], Any] | None
"""Optax's mask: a prefix pytree of booleans, or a function of the params to one."""


def wide_dtype(leaf: Any) -> np.dtype:
    """The dtype to accumulate a leaf in: its own, but at least 32 bits."""
    dtype = jnp.result_type(leaf)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def real_dtype(leaf: Any) -> np.dtype:
    """The dtype of the leaf's absolute value, at least float32."""
    return jnp.finfo(wide_dtype(leaf)).dtype


def is_floating(dtype: Any) -> bool:
    """Whether this is the dtype of real floating numbers."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def is_wide(number: Any) -> bool:
    """Whether a number has no dtype, or one of 32 bits or more."""
    return getattr(number, "dtype", np.dtype(float)).itemsize >= 4
