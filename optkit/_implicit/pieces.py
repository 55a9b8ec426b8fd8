"""Parts of optimality maps: types, and checks of gradients and results."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._vector import cast_like

Map: TypeAlias = Callable[[PyTree, PyTree], PyTree]
"""(y, args) -> a pytree like y."""

Objective: TypeAlias = Callable[[PyTree, PyTree], Float[Array, ""]]
"""(y, args) -> a real scalar."""

Prox: TypeAlias = Callable[[PyTree, PyTree, Any], PyTree]
"""(v, args, step_size) -> a pytree like v."""


def gradient_of(check: Check, objective: Objective) -> Map:
    """∇_y objective(y, args), with checks."""
    gradient = jax.grad(check.scalar(objective, "objective"))

    def checked(y: PyTree, args: PyTree) -> PyTree:
        check.real(y=y)
        return gradient(y, args)

    return checked


def checked_like(
    check: Check, name: str, tree: PyTree, like: PyTree, owner: str = "y"
) -> PyTree:
    """The tree in the dtypes of `like`, after checking structure and shapes."""
    check.like(name, tree, like, owner, dtype_of=None)
    return cast_like(tree, like)
