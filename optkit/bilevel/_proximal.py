"""The proximal term of the penalty methods: a pull to a centre that follows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._check import check_positive
from .._types import (
    Params,
    wide_dtype,
)
from .._vector import axpy


class Proximal(NamedTuple):
    """A proximal step ρ, None for infinity, and the averaging β of its centre."""

    prox_step: Any
    averaging: Any

    def pull(self, grads: Params, y: Params, center: Params) -> Params:
        """The gradient plus (y - center)/ρ."""
        if self.prox_step is None:
            return grads
        return axpy(1 / self.prox_step, axpy(-1.0, center, y), grads)

    def average(self, center: Params, y: Params) -> Params:
        """(1-β) center + β y."""

        def one(c: Array, v: Array) -> Array:
            wide = wide_dtype(v)
            beta = jnp.asarray(self.averaging, wide)
            return ((1 - beta) * c.astype(wide) + beta * v.astype(wide)).astype(v.dtype)

        return jax.tree.map(one, center, y)


def as_proximal(call: str, prox_step: Any, averaging: Any) -> Proximal:
    """Checks both numbers."""
    if prox_step is not None:
        check_positive(call, "prox_step", prox_step)
    check_positive(call, "averaging", averaging)
    if not isinstance(averaging, jax.Array) and averaging > 1:
        raise ValueError(
            f"`{call}` needs 0 < averaging <= 1, got averaging={averaging!r}. It is "
            f"the weight of the new iterate in the centre; 1 is no average."
        )
    return Proximal(prox_step, averaging)
