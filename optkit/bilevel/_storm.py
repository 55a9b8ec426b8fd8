"""The gradients of the penalty methods: as they are, or estimated with momentum.

Both answer the same two questions: what the lower iterates y and z descend along, and,
after these have moved, what x descends along. With β the decay, an estimate is

    e_k = ∇(new; ξ_k) + β_k (e_{k-1} - ∇(old; ξ_k))

corrected by the gradient at the point where it was made, on the sample of now, so that
it follows the iterate without lag (STORM). `old` is where `new` was a step ago: the
gradients in x are taken after y and z have moved, so their old point has y and z from
before the move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._check import Check
from .._types import Params
from .._vector import axpy, subtract, widen
from ._base import Batch, Batches, Objective


class Point(NamedTuple):
    """Where gradients are taken."""

    x: Params
    y: Params
    z: Params


class LowerSlopes(NamedTuple):
    """∇_y f(x, y), ∇_y g(x, y) and ∇_y g(x, z)."""

    upper_y: Params
    lower_y: Params
    lower_z: Params


class UpperSlopes(NamedTuple):
    """∇_x f(x, y) and ∇_x [g(x, y) - g(x, z)]."""

    upper_x: Params
    lower_x: Params


class Exact(NamedTuple):
    """The gradients of a batch, as they are. It remembers nothing."""

    f: Objective
    g: Objective

    def init(self, point: Point) -> None:
        """Nothing."""

    def lower(
        self, memory: Any, count: Any, point: Point, batches: Batches
    ) -> tuple[LowerSlopes, Any]:
        """The gradients in y and z."""
        del count
        x, y, z = point
        f_y, g_y = jax.grad(self.f, argnums=1), jax.grad(self.g, argnums=1)
        slopes = LowerSlopes(
            f_y(x, y, batches.upper_y),
            g_y(x, y, batches.lower_y),
            g_y(x, z, batches.lower_z),
        )
        return slopes, memory

    def upper(
        self, memory: Any, count: Any, before: Point, after: Point, batches: Batches
    ) -> tuple[Array, Array, UpperSlopes, Any]:
        """f, g and the gradients in x, with y and z after their move."""
        del count, before
        (value, lower), slopes = self._at(after, batches)
        return value, lower, slopes, memory

    def _at(
        self, point: Point, batches: Batches
    ) -> tuple[tuple[Array, Array], UpperSlopes]:
        x, y, z = point

        # The two lower gradients nearly cancel: one batch, one call of `jax.grad`.
        def gap(x: Params, batch: Batch) -> tuple[Array, Array]:
            lower = self.g(x, y, batch)
            return lower - self.g(x, z, batch), lower

        value, f_x = jax.value_and_grad(self.f)(x, y, batches.upper_x)
        (_, lower), g_x = jax.value_and_grad(gap, has_aux=True)(x, batches.lower_x)
        return (value, lower), UpperSlopes(f_x, g_x)


class Memory(NamedTuple):
    """Where the gradients of the last step were taken, and the estimates."""

    previous: Point
    lower: LowerSlopes  # in float32 or wider
    upper: UpperSlopes


class Storm(NamedTuple):
    """The gradients of a batch, corrected by what the last step estimated."""

    exact: Exact
    decay: Callable[[Int[Array, ""]], Float[Array, ""]]

    def init(self, point: Point) -> Memory:
        """Zeros, which the first step, of decay 0, does not look at."""
        x, y, z = jax.tree.map(jnp.zeros_like, widen(point))
        return Memory(
            jax.tree.map(jnp.array, point), LowerSlopes(y, y, z), UpperSlopes(x, x)
        )

    def lower(
        self, memory: Memory, count: Any, point: Point, batches: Batches
    ) -> tuple[LowerSlopes, Memory]:
        """The estimates in y and z, before these move."""
        new, _ = self.exact.lower(None, count, point, batches)
        old, _ = self.exact.lower(None, count, memory.previous, batches)
        slopes = self._follow(count, memory.lower, new, old)
        return slopes, memory._replace(lower=slopes)

    def upper(
        self, memory: Memory, count: Any, before: Point, after: Point, batches: Batches
    ) -> tuple[Array, Array, UpperSlopes, Memory]:
        """f, g and the estimates in x, after y and z have moved."""
        values, new = self.exact._at(after, batches)
        was = before._replace(x=memory.previous.x)
        _, old = self.exact._at(was, batches)
        slopes = self._follow(count, memory.upper, new, old)
        return *values, slopes, Memory(before, memory.lower, slopes)

    def _follow(self, count: Any, estimate: Any, new: Any, old: Any) -> Any:
        new, old = widen(new), widen(old)
        return axpy(self.decay(count), subtract(estimate, old), new)


def as_decay(check: Check, decay: Any) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """β_k of a number or a function of the step, zero in the first two steps."""
    check.decay(decay=decay)

    def at(count: Int[Array, ""]) -> Float[Array, ""]:
        value = decay(count) if callable(decay) else decay
        return jnp.where(count <= 1, 0.0, jnp.asarray(value).astype(float))

    return at
