"""The gradients of the penalty methods: exact, or estimated with momentum.

Both say what the lower iterates y and z descend along and, once these have moved, what
x descends along. With β the decay, an estimate is

    e_k = ∇(new; ξ_k) + β_k (e_{k-1} - ∇(old; ξ_k))

The last estimate is corrected by the gradient at the point where it was made, on the
current sample, so it follows the iterate without lag (STORM). `old` is where `new` was
one step ago. Gradients in x are taken after y and z have moved, so their old point has
y and z from before the move.
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


class InnerGradients(NamedTuple):
    """∇_y f(x, y), ∇_y g(x, y) and ∇_y g(x, z)."""

    upper_y: Params
    lower_y: Params
    lower_z: Params


class OuterGradients(NamedTuple):
    """∇_x f(x, y) and ∇_x [g(x, y) - g(x, z)]."""

    upper_x: Params
    lower_x: Params


class Exact(NamedTuple):
    """The gradients of a batch, unchanged. It has no memory."""

    f: Objective
    g: Objective

    def init(self, point: Point) -> None:
        """Nothing."""

    def inner(
        self, memory: Any, count: Any, point: Point, batches: Batches
    ) -> tuple[InnerGradients, Any]:
        """The gradients in y and z."""
        del count
        x, y, z = point
        f_y, g_y = jax.grad(self.f, argnums=1), jax.grad(self.g, argnums=1)
        gradients = InnerGradients(
            f_y(x, y, batches.upper_y),
            g_y(x, y, batches.lower_y),
            g_y(x, z, batches.lower_z),
        )
        return gradients, memory

    def outer(
        self, memory: Any, count: Any, before: Point, after: Point, batches: Batches
    ) -> tuple[Array, Array, OuterGradients, Any]:
        """f, g and the gradients in x, after y and z have moved."""
        del count, before
        x, y, z = after

        # The two lower gradients nearly cancel, so they share a batch and a `jax.grad`.
        def gap(x: Params, batch: Batch) -> tuple[Array, Array]:
            g = self.g(x, y, batch)
            return g - self.g(x, z, batch), g

        f, f_x = jax.value_and_grad(self.f)(x, y, batches.upper_x)
        (_, g), g_x = jax.value_and_grad(gap, has_aux=True)(x, batches.lower_x)
        return f, g, OuterGradients(f_x, g_x), memory


class Memory(NamedTuple):
    """Where the last step took its gradients, and the estimates."""

    previous: Point
    inner: InnerGradients  # in float32 or wider
    outer: OuterGradients


class Storm(NamedTuple):
    """The gradients of a batch, corrected by the last estimate."""

    exact: Exact
    decay: Callable[[Int[Array, ""]], Float[Array, ""]]

    def init(self, point: Point) -> Memory:
        """Zeros, which the first step ignores, since its decay is 0."""
        x, y, z = jax.tree.map(jnp.zeros_like, widen(point))
        previous = jax.tree.map(jnp.array, point)
        return Memory(previous, InnerGradients(y, y, z), OuterGradients(x, x))

    def inner(
        self, memory: Memory, count: Any, point: Point, batches: Batches
    ) -> tuple[InnerGradients, Memory]:
        """The estimates in y and z, before these move."""
        new, _ = self.exact.inner(None, count, point, batches)
        old, _ = self.exact.inner(None, count, memory.previous, batches)
        e = self._followed(count, memory.inner, new, old)
        return e, memory._replace(inner=e)

    def outer(
        self, memory: Memory, count: Any, before: Point, after: Point, batches: Batches
    ) -> tuple[Array, Array, OuterGradients, Memory]:
        """f, g and the estimates in x, after y and z have moved."""
        f, g, new, _ = self.exact.outer(None, count, before, after, batches)
        was = before._replace(x=memory.previous.x)
        *_, old, _ = self.exact.outer(None, count, before, was, batches)
        e = self._followed(count, memory.outer, new, old)
        return f, g, e, Memory(before, memory.inner, e)

    def _followed(self, count: Any, estimate: Any, new: Any, old: Any) -> Any:
        new, old = widen(new), widen(old)
        return axpy(self.decay(count), subtract(estimate, old), new)


def as_decay(check: Check, decay: Any) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """β_k from a number or a function of the step; zero in the first two steps."""
    check.decay(decay=decay)

    def at(count: Int[Array, ""]) -> Float[Array, ""]:
        value = decay(count) if callable(decay) else decay
        return jnp.where(count <= 1, 0.0, jnp.asarray(value).astype(float))

    return at
