"""What every bilevel solver shares: its info, its batches, and the gradients it asks for.

    min_x F(x, y*(x))    y*(x) in argmin_y g(x, y)

F is `upper(x, y, batch)` and g is `lower(x, y, batch)`, scalars of two pytrees x and y.
A solver is an `ok.Solver`: `init(x, y)` makes its state, and `step(state, batch)` takes
one step of x, with whatever steps of y that needs, and says in `info` how it went.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._results import RESULTS
from .._types import Params
from .._vector import norm, subtract

Batch: TypeAlias = PyTree
Objective: TypeAlias = Callable[[Params, Params, Batch], Float[Array, ""]]
"""(x, y, batch) -> scalar."""


class BilevelInfo(NamedTuple):
    """What a human reads of a step; what a solver does not compute is NaN.

    Attributes:
        value: F at the (x, y) where its gradient was taken.
        lower: g there.
        hypergradient_norm: of the estimate that moved x.
        residual_norm: |∇_y g|, or of the projected step of y if y is constrained.
        penalty: the weight λ of g beside F, or 1/σ.
        result: an item of `ok.RESULTS`: what, if anything, is wrong.
        linear_residual: |H v - ∇_y F| / |∇_y F|, of methods that solve for v.
    """

    value: Float[Array, ""]
    lower: Float[Array, ""]
    hypergradient_norm: Float[Array, ""]
    residual_norm: Float[Array, ""]
    penalty: Any = math.nan
    result: Any = RESULTS.successful
    linear_residual: Any = math.nan


class Batches(NamedTuple):
    """One batch for each oracle, for samples that are independent as in the papers.

    Given to `step` in the place of a batch; any other pytree is shared by all oracles.
    Fields that a solver does not ask for are ignored. Where a step takes T inner steps,
    the leaves of `lower_y`, `lower_z` and `upper_y` have a leading axis of T, a batch
    for each.
    """

    upper_x: Batch = None  # ∇_x F, and F in the hypergradient of implicit methods
    upper_y: Batch = None  # ∇_y F in the inner steps
    lower_x: Batch = None  # ∇_x g, and the second derivatives of g
    lower_y: Batch = None  # ∇_y g in the inner steps
    lower_z: Batch = None  # ∇_y g of the second lower iterate, where there are two


def batches_of(batch: Batch) -> tuple[Batches, bool]:
    """One batch for each oracle, and whether it is one for all of them."""
    if isinstance(batch, Batches):
        return batch, False
    return Batches(batch, batch, batch, batch, batch), True


def objectives_of(check: Check, upper: Any, lower: Any) -> tuple[Objective, Objective]:
    """F and g, which raise unless they return scalars."""
    return check.scalar(upper, "upper"), check.scalar(lower, "lower")


def check_variables(check: Check, x: Params, y: Params) -> None:
    """Raises a `TypeError` unless both variables are trees of real floating arrays."""
    check.real(x=x, y=y)


def repeat(
    body: Callable[[PyTree, PyTree], PyTree],
    carry: PyTree,
    batches: PyTree,
    *,
    num_steps: int,
    is_shared: bool,
) -> PyTree:
    """Applies carry <- body(carry, batch) `num_steps` times.

    Args:
        body: one inner step.
        carry: what it turns over.
        batches: if shared, the one batch of all steps; else one for each, along a
            leading axis of `num_steps`.
        num_steps: T.
        is_shared: see `batches`.

    Returns:
        The last carry.
    """
    if is_shared:
        return lax.fori_loop(0, num_steps, lambda _, c: body(c, batches), carry)
    check_leading(batches, num_steps)
    scanned = lax.scan(lambda c, b: (body(c, b), None), carry, batches, num_steps)
    return scanned[0]


def check_leading(batches: PyTree, num_steps: int) -> None:
    """Raises a `ValueError` unless there is a batch for each inner step."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)]
    text = f"needs a leading axis of {num_steps}, one batch for each inner step"
    is_fine = all(shape[:1] == (num_steps,) for shape in shapes)
    Check("ok.bilevel.Batches").that(is_fine, f"{text}, got shapes {shapes}.")


def slope_of(
    lower: Objective, x: Params, y: Params, batch: Batch
) -> tuple[Array, Params, Callable[[Params], tuple[Params, Params]]]:
    """g, ∇_y g, and u ↦ (J u, H u) in one backward pass."""

    def slope(x: Params, y: Params) -> tuple[Params, Array]:
        g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, batch)
        return g_y, g

    g_y, pull, g = jax.vjp(slope, x, y, has_aux=True)
    return g, g_y, pull


def relative_residual(product: Params, b: Params) -> Float[Array, ""]:
    """|product - b| / |b|; of b = 0, the norm itself."""
    size = norm(b)
    left = norm(subtract(product, b))
    return left / jnp.where(size > 0, size, 1)


def upper_slopes(
    upper: Objective, x: Params, y: Params, batch: Batch
) -> tuple[Array, Params, Params]:
    """F, ∇_x F and ∇_y F."""
    F, (F_x, F_y) = jax.value_and_grad(upper, argnums=(0, 1))(x, y, batch)
    return F, F_x, F_y
