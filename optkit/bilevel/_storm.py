"""Gradient estimates with recursive momentum, of two lower iterates and of x.

An estimate is corrected by the gradient at the point where it was made, on the sample
of now, so it follows the iterate without lag (STORM). With β = 1 - η the decay,

    e_k = ∇(new; ξ_k) + β (e_{k-1} - ∇(old; ξ_k))

Where `old` is matters: it is the point at which `new` was a step ago. The gradients by
x are taken after y and z have moved, so their old point has y and z before the move.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._check import check_decay
from .._types import (
    Params,
    wide_dtype,
)
from ._base import Batches
from ._penalized import Oracles


class Point(NamedTuple):
    """Where gradients are taken."""

    x: Params
    y: Params
    z: Params


class Estimates(NamedTuple):
    """One for each gradient, in float32 or wider."""

    upper_y: Params
    lower_y: Params
    lower_z: Params
    upper_x: Params
    lower_x: Params  # of g(x, y) - g(x, z)


def zero_estimates(x: Params, y: Params) -> Estimates:
    """What the first step, whose decay is zero, begins with."""

    def zeros(tree: Params) -> Params:
        return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, wide_dtype(leaf)), tree)

    return Estimates(zeros(y), zeros(y), zeros(y), zeros(x), zeros(x))


def as_decay(call: str, decay: Any) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """β_k of a number or a function of the step, zero in the first two steps."""
    check_decay(call, "decay", decay)

    def at(count: Int[Array, ""]) -> Float[Array, ""]:
        value = decay(count) if callable(decay) else decay
        return jnp.where(count <= 1, 0.0, jnp.asarray(value).astype(float))

    return at


def estimate_lower(
    grad: Oracles,
    batches: Batches,
    decay: Float[Array, ""],
    estimates: Estimates,
    new: Point,
    old: Point,
) -> Estimates:
    """The estimates by y and by z, before these move."""

    def follow(estimate: Params, of: Callable[[Point], Params]) -> Params:
        return _follow(estimate, of(new), of(old), decay)

    return estimates._replace(
        upper_y=follow(
            estimates.upper_y, lambda p: grad.upper_y(p.x, p.y, batches.upper_y)
        ),
        lower_y=follow(
            estimates.lower_y, lambda p: grad.lower_y(p.x, p.y, batches.lower_y)
        ),
        lower_z=follow(
            estimates.lower_z, lambda p: grad.lower_y(p.x, p.z, batches.lower_z)
        ),
    )


def estimate_upper(
    grad: Oracles,
    batches: Batches,
    decay: Float[Array, ""],
    estimates: Estimates,
    new: Point,
    old: Point,
) -> tuple[Estimates, Array, Array]:
    """The estimates by x, after y and z have moved, and the two values there."""
    upper, f_new = grad.upper_x(new.x, new.y, batches.upper_x)
    lower, g_new = grad.lower_x(*new, batches.lower_x)
    _, f_old = grad.upper_x(old.x, old.y, batches.upper_x)
    _, g_old = grad.lower_x(*old, batches.lower_x)
    estimates = estimates._replace(
        upper_x=_follow(estimates.upper_x, f_new, f_old, decay),
        lower_x=_follow(estimates.lower_x, g_new, g_old, decay),
    )
    return estimates, upper, lower


def _follow(estimate: Params, new: Params, old: Params, decay: Array) -> Params:
    def one(e: Array, n: Array, o: Array) -> Array:
        return n.astype(e.dtype) + decay.astype(e.dtype) * (e - o.astype(e.dtype))

    return jax.tree.map(one, estimate, new, old)
