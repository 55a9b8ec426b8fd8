"""Curvatures that compute in advance what does not depend on the vector."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._linearize import linearize
from .._types import Params
from .base import AbstractCurvature, unknown_diagonal


class Linearised(AbstractCurvature):
    """A linear function as an operator that keeps shardings, unlike Lineax's."""

    function: Callable[[Params], Params]  # a pytree, whose arrays are leaves
    shapes: tuple[jax.ShapeDtypeStruct, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)
    is_known_psd: bool = eqx.field(static=True)

    @property
    def is_psd(self) -> bool:
        """Whether C is known to be positive semidefinite."""
        return self.is_known_psd

    def product(self, vector: Params) -> Params:
        """The function's value."""
        return self.function(vector)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.treedef.unflatten(self.shapes)

    def diagonal(self) -> Params:
        """Not known, so it raises a `NotImplementedError`."""
        raise unknown_diagonal("`C = lx.linearise(...)`", "C")


def linearised(operator: AbstractCurvature, params: Params) -> Linearised:
    """The operator, with everything that does not depend on the vector precomputed."""
    # The product is linear, so it is its own derivative.
    check = Check(operator.maker or type(operator).__name__)
    _, product = linearize(check, operator.mv, params, is_needed=False)
    if not isinstance(product, jax.tree_util.Partial):
        product = eqx.filter_closure_convert(product, params)
    shapes, treedef = jax.tree.flatten(operator.in_structure())
    return Linearised(product, tuple(shapes), treedef, operator.is_psd)


@lx.linearise.register(Linearised)
def _(operator: Linearised) -> lx.AbstractLinearOperator:
    return operator
