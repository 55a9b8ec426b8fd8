"""What every solver of nested problems has in common.

    min_x F(x, y*(x))    y*(x) in argmin_y g(x, y)

F is `upper(x, y, batch)` and g is `lower(x, y, batch)`, scalars of two pytrees x and y.
A solver is two functions, like an optax transform: `init(x, y)` makes its state, and
`step(state, batch)` takes one step of x, with whatever steps of y that needs, and says
in `info` how it went. All of it is pure: a step jits once, scans, and vmaps over seeds.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import (
    check_function,
    check_real,
    check_scalar,
    check_transform as check_transform,
    first_difference,
)
from .._results import RESULTS
from .._types import Params
from .._vector import all_finite, norm, where

Batch: TypeAlias = PyTree
Objective: TypeAlias = Callable[[Params, Params, Batch], Float[Array, ""]]
"""(x, y, batch) -> scalar."""

Projection: TypeAlias = Callable[[Params], Params]
"""From a variable to the nearest point of its set, as in `optax.projections`."""


class BilevelInfo(NamedTuple):
    """What a human reads of a step; what a solver does not compute is NaN.

    Attributes:
        upper: F at the (x, y) where its gradient was taken.
        lower: g there.
        hypergradient_norm: of the estimate that moved x.
        residual: |∇_y g|, or of the step of y where y is constrained.
        penalty: the weight λ of g beside F, or 1/σ.
        result: an item of `ok.RESULTS`: what, if anything, is wrong.
        linear_residual: |H v - ∇_y F| / |∇_y F|, of methods that solve for v.
    """

    upper: Float[Array, ""]
    lower: Float[Array, ""]
    hypergradient_norm: Float[Array, ""]
    residual: Float[Array, ""]
    penalty: Float[Array, ""]
    result: Any
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


def scalar_objective(call: str, name: str, function: Objective) -> Objective:
    """The function, refused with a message where it is none or returns no scalar."""
    if not callable(function):
        raise TypeError(f"`{call}` needs {name}(x, y, batch), got {function!r}.")

    def objective(x: Params, y: Params, batch: Batch) -> Float[Array, ""]:
        value = function(x, y, batch)
        check_scalar(f"{call}({name})", value)
        return value

    return objective


def check_variables(call: str, x: Params, y: Params) -> None:
    """Raises a `TypeError` unless both variables are trees of real floating arrays."""
    for name, variable in (("x", x), ("y", y)):
        check_real(call, name, variable, "part of the batch")


def batches_of(batch: Batch) -> tuple[Batches, bool]:
    """One batch for each oracle, and whether it is one for all of them."""
    if isinstance(batch, Batches):
        return batch, False
    return Batches(batch, batch, batch, batch, batch), True


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

    Raises:
        ValueError: for a leading axis of another length than T.
    """
    if is_shared:
        return lax.fori_loop(0, num_steps, lambda _, c: body(c, batches), carry)
    check_leading(batches, num_steps)
    scanned = lax.scan(lambda c, b: (body(c, b), None), carry, batches, num_steps)
    return scanned[0]


def check_leading(batches: PyTree, num_steps: int) -> None:
    """Raises a `ValueError` unless there is a batch for each inner step."""
    for leaf in jax.tree.leaves(batches):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != num_steps:
            raise ValueError(
                f"`ok.bilevel.Batches` needs a leading axis of {num_steps}, one batch for each "
                f"inner step, got an array of shape {jnp.shape(leaf)}. Stack that many "
                f"batches, or pass one shared batch that is not an `ok.bilevel.Batches`."
            )


def residual_of(
    gradient: Params, variable: Params, project: Projection | None
) -> Float[Array, ""]:
    """|∇g|, or with a constraint |y - project(y - ∇g)|: zero where y is stationary."""
    if project is None:
        return norm(gradient)
    moved = project(jax.tree.map(jnp.subtract, variable, gradient))
    return norm(jax.tree.map(jnp.subtract, variable, moved))


def descend(
    call: str,
    name: str,
    transform: optax.GradientTransformation,
    gradient: Params,
    memory: PyTree,
    variable: Params,
    project: Projection | None,
) -> tuple[Params, PyTree]:
    """One step of an optax transform, and back into the constraint set.

    Args:
        call: the public function to name in a message.
        name: what `variable` is to the user: "x" or "y".
        transform: optax's.
        gradient: like `variable`, in the same dtypes.
        memory: the transform's state.
        variable: what is stepped.
        project: None where it is unconstrained.

    Returns:
        The variable and the transform's state after the step.

    Raises:
        ValueError: where transform or projection return another structure or shape.
        TypeError: where they return another dtype, or the projection is no function.
    """
    updates, following = transform.update(gradient, memory, variable)
    what = f"the optax transform of {name} returned a state"
    check_kept(call, what, following, memory)
    moved: Params = optax.apply_updates(variable, updates)
    if project is not None:
        check_function(call, f"project_{name}", project)
        moved = project(moved)
        check_kept(call, f"project_{name}({name}) returned a tree", moved, variable)
    return moved, following


def check_kept(call: str, what: str, tree: PyTree, reference: PyTree) -> None:
    """Raises unless a tree has structure, shapes and dtypes of what it replaces."""
    if (found := first_difference(tree, reference)) is None:
        return
    kind, where, got, want = found
    advice = "Each step must return what it was given, so that a step compiles once."
    if kind == "structure":
        raise ValueError(
            f"`{call}`: {what} of another structure. {advice}\n"
            f"  got: {got}\n  wanted: {want}"
        )
    error = ValueError if kind == "shape" else TypeError
    raise error(f"`{call}`: {what} of {kind} {got} at {where}, not {want}. {advice}")


def keep_finite(
    before: Any, after: Any, info: BilevelInfo, is_fine: Any = None
) -> tuple[Any, BilevelInfo]:
    """The state after a step, or where that is not finite the one before it.

    A batch with a NaN, or a step that overflows, then changes nothing but `count`,
    which counts calls, so that the next batch is another one.

    Args:
        before: the state, a NamedTuple with a field `count`.
        after: the state that the step made of it.
        info: of the step.
        is_fine: whether `after` is finite, if it is known; None looks at all of it.

    Returns:
        A state, and `info` with the result `nonfinite_gradient` where it was kept.
    """
    is_fine = all_finite(after) if is_fine is None else is_fine
    result = RESULTS.where(is_fine, info.result, RESULTS.nonfinite_gradient)
    kept = where(is_fine, after, before)._replace(count=after.count)
    return kept, info._replace(result=result)


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
    left = norm(jax.tree.map(jnp.subtract, product, b))
    return left / jnp.where(size > 0, size, 1)


def objectives_of(
    call: str, upper: Objective, lower: Objective
) -> tuple[Objective, Objective]:
    """F and g, checked to return scalars."""
    return (
        scalar_objective(call, "upper", upper),
        scalar_objective(call, "lower", lower),
    )


def upper_slopes(
    upper: Objective, x: Params, y: Params, batch: Batch
) -> tuple[Array, Params, Params]:
    """F, ∇_x F and ∇_y F."""
    F, (F_x, F_y) = jax.value_and_grad(upper, argnums=(0, 1))(x, y, batch)
    return F, F_x, F_y
