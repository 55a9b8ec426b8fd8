"""What optimality maps are built from: checked gradients, sums, shapes."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._check import (
    check_function,
    check_real,
    check_scalar,
)

Map: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""`(y, args)` to a tree like y."""

Objective: TypeAlias = Callable[[PyTree, PyTree], Float[Array, ""]]
"""`(y, args)` to a real scalar."""

Prox: TypeAlias = Callable[[PyTree, PyTree, Any], PyTree]
"""`(v, args, step_size)` to a tree like v."""


def gradient_of(call: str, objective: Objective) -> Map:
    """∇_y objective(y, args), checked."""
    check_function(call, "objective", objective)

    def checked(y: PyTree, args: PyTree) -> Array:
        value = objective(y, args)
        check_scalar(call, value)
        return value

    def gradient(y: PyTree, args: PyTree) -> PyTree:
        check_real(call, "y", y)
        return jax.grad(lambda y: checked(y, args))(y)

    return gradient


def checked_like(call: str, name: str, tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of `like`, after checking structure and shapes."""
    shapes = jax.tree.map(jnp.shape, tree), jax.tree.map(jnp.shape, like)
    structures = jax.tree.structure(tree), jax.tree.structure(like)
    if structures[0] != structures[1] or shapes[0] != shapes[1]:
        raise ValueError(
            f"`{call}` got a {name} of another structure or shape than it belongs "
            f"to. They must have the same leaves.\n  {name}: {shapes[0]}\n"
            f"  needed: {shapes[1]}"
        )
    return jax.tree.map(
        lambda a, b: jnp.asarray(a).astype(jnp.result_type(b)), tree, like
    )
