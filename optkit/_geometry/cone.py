"""Products of cones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .projections import second_order_cone


class Cone(NamedTuple):
    """The sizes of a product of cones, in the order of the rows of A.

    Attributes:
        zero: number of equations, s = 0.
        non_negative: number of rows with s >= 0.
        second_order: sizes of the blocks s = (t, v) with |v| <= t.
    """

    zero: int = 0
    non_negative: int = 0
    second_order: tuple[int, ...] = ()

    def size(self) -> int:
        """The number of rows."""
        return self.zero + self.non_negative + sum(self.second_order)

    def project_dual(self, v: Float[Array, " m"]) -> Float[Array, " m"]:
        """The nearest point of the dual cone K*: free, >= 0, and second-order parts."""
        start = self.zero + self.non_negative
        parts = [v[: self.zero], jax.nn.relu(v[self.zero : start])]
        for size in self.second_order:
            parts.append(second_order_cone(v[start : start + size]))
            start += size
        return jnp.concatenate(parts)
