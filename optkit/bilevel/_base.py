"""What all bilevel solvers share: their info, batches, and basic gradients.

    min_x F(x, y*(x))    y*(x) in argmin_y g(x, y)

F is `upper(x, y, batch)` and g is `lower(x, y, batch)`, scalars of two pytrees x and y.
A solver is an `ok.Solver`: `init(x, y)` makes its state, and `step(state, batch)` takes
one step of x, with the steps of y that it needs, and reports in `info`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from .._check import Check
from .._results import RESULTS, described
from .._solver.move import Move
from .._types import Params
from .._vector import relative_norm, subtract

Batch: TypeAlias = PyTree
Objective: TypeAlias = Callable[[Params, Params, Batch], Float[Array, ""]]
"""(x, y, batch) -> scalar."""


class BilevelInfo(NamedTuple):
    """A report on one step. Numbers that a solver does not compute are NaN.

    Attributes:
        value: F at the (x, y) where its gradient was taken.
        lower: g there.
        hypergradient_norm: the norm of the estimate that moved x.
        residual_norm: |∇_y g|, or that of the projected step if y is constrained.
        penalty: the weight λ of g relative to F, or 1/σ.
        result: an item of `ok.RESULTS`, which says what went wrong, if anything.
        linear_residual: |H v - ∇_y F| / |∇_y F|, for methods that solve for v.
    """

    value: Float[Array, ""]
    lower: Float[Array, ""]
    hypergradient_norm: Float[Array, ""]
    residual_norm: Float[Array, ""]
    penalty: Any = math.nan
    result: Any = RESULTS.successful
    linear_residual: Any = math.nan
    __repr__ = described


class Batches(NamedTuple):
    """One batch per gradient, for methods that need independent samples.

    Pass it to `step` as the batch; any other pytree is shared by all gradients. Fields
    that a solver does not use are ignored. If a step takes T inner steps, the leaves of
    `lower_y`, `lower_z` and `upper_y` have a leading axis of T, one batch for each.
    """

    upper_x: Batch = None  # ∇_x F, and F in the hypergradient of implicit methods
    upper_y: Batch = None  # ∇_y F in the inner steps
    lower_x: Batch = None  # ∇_x g, and the second derivatives of g
    lower_y: Batch = None  # ∇_y g in the inner steps
    lower_z: Batch = None  # ∇_y g of the second lower iterate, if there are two


def batches_of(batch: Batch) -> tuple[Batches, bool]:
    """One batch per gradient, and whether they are all the same one."""
    if isinstance(batch, Batches):
        return batch, False
    return Batches(batch, batch, batch, batch, batch), True


class InnerBatches(NamedTuple):
    """The batches of the inner steps: one for all, or one each along a leading axis."""

    batch: Batch
    is_shared: bool

    def loop(
        self, body: Callable[[PyTree, Batch], PyTree], carry: PyTree, num_steps: int
    ) -> PyTree:
        """Applies carry <- body(carry, batch) `num_steps` times."""
        if self.is_shared:
            step = lambda _, carry: body(carry, self.batch)  # noqa: E731
            return lax.fori_loop(0, num_steps, step, carry)
        self.check(num_steps)
        step = lambda carry, batch: (body(carry, batch), None)  # noqa: E731
        return lax.scan(step, carry, self.batch, num_steps)[0]

    def check(self, num_steps: int) -> None:
        """Raises a `ValueError` unless there is one batch per inner step."""
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(self.batch)]
        text = f"needs a leading axis of {num_steps}, one batch for each inner step"
        is_fine = self.is_shared or all(s[:1] == (num_steps,) for s in shapes)
        Check("ok.bilevel.Batches").that(is_fine, f"{text}, got shapes {shapes}.")

    def split(self, count: int) -> tuple["InnerBatches", "InnerBatches"]:
        """The batches of the first `count` steps, and of the others."""
        return self._each(lambda a: a[:count]), self._each(lambda a: a[count:])

    def grouped(self, size: int) -> "InnerBatches":
        """The batches of groups of `size` steps."""
        return self._each(lambda a: a.reshape(-1, size, *a.shape[1:]))

    def last(self) -> Batch:
        """The batch of the last step."""
        return self._each(lambda a: a[-1]).batch

    def _each(self, part: Callable[[Array], Array]) -> "InnerBatches":
        if self.is_shared:
            return self
        return self._replace(batch=jax.tree.map(part, self.batch))


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """The count of steps plus one; the largest integer stays where it is."""
    return jnp.asarray(optax.safe_increment(count))


def objectives_of(check: Check, upper: Any, lower: Any) -> tuple[Objective, Objective]:
    """F and g, which raise unless they return scalars."""
    return check.scalar(upper, "upper"), check.scalar(lower, "lower")


def inner_step(
    lower: Objective, move: Move, x: Params
) -> Callable[[PyTree, Batch], PyTree]:
    """Ξ: one step of y along ∇_y g, and of its opt_state."""

    def step(carry: PyTree, batch: Batch) -> PyTree:
        y, opt_state = carry
        return move(jax.grad(lower, argnums=1)(x, y, batch), opt_state, y)

    return step


def upper_gradients(
    upper: Objective, x: Params, y: Params, batch: Batch
) -> tuple[Array, Params, Params]:
    """F, ∇_x F and ∇_y F."""
    F, (F_x, F_y) = jax.value_and_grad(upper, argnums=(0, 1))(x, y, batch)
    return F, F_x, F_y


def lower_gradient(
    lower: Objective, x: Params, y: Params, batch: Batch
) -> tuple[Array, Params, Callable[[Params], tuple[Params, Params]]]:
    """g, ∇_y g, and u ↦ (J u, H u) in one backward pass."""

    def gradient(x: Params, y: Params) -> tuple[Params, Array]:
        g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, batch)
        return g_y, g

    g_y, pull, g = jax.vjp(gradient, x, y, has_aux=True)
    return g, g_y, pull


def relative_residual(product: Params, b: Params) -> Float[Array, ""]:
    """|product - b| / |b|, or |product| if b = 0."""
    return relative_norm(subtract(product, b), b)
