"""Pytrees as lists of arrays, for code that must not see the classes of the params.

Lineax passes operators and vectors through primitives, which rebuild them where no
trace is active. The params of Flax NNX cannot be rebuilt there, but lists always can.
"""

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from .._curvature.base import AbstractCurvature, diagonal_of
from .._types import Params
from .base import AbstractInverse, Operator


class Portable(eqx.Module):
    """Any pytree in a form that `jax.jit` accepts: static, except for its arrays.

    Lineax keeps lists, which cannot be hashed, in static fields of its states.
    """

    arrays: list[Array]
    rest: "_Static" = eqx.field(static=True, repr=False)

    def __init__(self, value: PyTree) -> None:
        leaves, treedef = jax.tree.flatten(value)
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        pairs = list(zip(leaves, is_array, strict=True))
        self.arrays = [jnp.asarray(leaf) for leaf, yes in pairs if yes]
        self.rest = _Static([None if yes else (leaf,) for leaf, yes in pairs], treedef)

    @property
    def value(self) -> Any:
        """The pytree."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if x is None else x[0] for x in self.rest.leaves]
        return self.rest.treedef.unflatten(leaves)


@dataclass(frozen=True)
class _Static:
    """A pytree without its arrays, compared by value."""

    leaves: list[Any]
    treedef: Any

    def __hash__(self) -> int:
        return hash(self.treedef.num_leaves)


class Leaves(AbstractCurvature):
    """A symmetric operator on the list of the leaves of the params."""

    operator: Portable
    shapes: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    is_known_psd: bool = eqx.field(static=True)

    def __init__(self, operator: Operator) -> None:
        self.operator = Portable(operator)
        self.shapes = tuple(jax.tree.leaves(operator.in_structure()))
        self.is_known_psd = lx.is_positive_semidefinite(operator)

    @property
    def is_psd(self) -> bool:
        """Whether C is known to be positive semidefinite."""
        return self.is_known_psd

    def product(self, vector: list[Array]) -> list[Array]:
        """The leaves of the product."""
        operator = self.operator.value
        return jax.tree.leaves(operator.mv(_as_params(operator, vector)))

    def in_structure(self) -> list[jax.ShapeDtypeStruct]:
        """The leaves of the structure."""
        return list(self.shapes)

    def diagonal(self) -> list[Array]:
        """The leaves of the diagonal."""
        return jax.tree.leaves(diagonal_of(self.operator.value))


class OnLeaves(lx.AbstractLinearSolver):
    """A method for symmetric operators, applied to the list of the leaves of b."""

    method: AbstractInverse

    def init(self, operator: Leaves, options: dict[str, Any]) -> Portable:
        """The operator and its factor."""
        return Portable(self.method.init(operator.operator.value, options))

    def compute(
        self, state: Portable, vector: list[Array], options: dict[str, Any]
    ) -> tuple[list[Array], Any, dict[str, Any]]:
        """The leaves of the solution, a result, and statistics."""
        operator, factor = state.value
        b = _as_params(operator, vector)
        x, result, stats = self.method.compute((operator, factor), b, options)
        return jax.tree.leaves(x), result, stats

    def transpose(self, state: Portable, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, because the operator is symmetric."""
        return state, options

    def conj(self, state: Portable, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, because the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """As the method."""
        return self.method.assume_full_rank()


@lx.linearise.register(Leaves)
def _(operator: Leaves) -> lx.AbstractLinearOperator:
    return Leaves(lx.linearise(operator.operator.value))


def _as_params(operator: Operator, leaves: list[Array]) -> Params:
    return jax.tree.structure(operator.in_structure()).unflatten(leaves)
