"""The Hessian of a loss as an operator, without forming its matrix."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .._vector import structure_of
from .base import AbstractCurvature, unknown_diagonal
from .hvp import product
from .linearised import linearised


class Hessian(AbstractCurvature):
    """∇²loss at the params. Made by `ok.hessian`."""

    loss: Callable[..., Any] = eqx.field(static=True)
    params: Params
    args: tuple[PyTree, ...]
    maker: ClassVar[str] = "ok.hessian"
    is_psd: ClassVar[bool] = False

    def product(self, vector: Params) -> Params:
        """∇²loss v."""
        check = Check(self.maker)
        loss = check.scalar(self.loss)
        return product(check, loss, self.params, vector, *self.args)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known, so it raises a `NotImplementedError`."""
        raise unknown_diagonal("`C = ok.hessian(...)`", "C")


def hessian(loss: Callable[..., Any], params: Params, *args: PyTree) -> Hessian:
    """Returns the Hessian of a loss as an operator, C = ∇²loss(params, *args).

    The loss is static and `params` and `args` are leaves, so you can pass the operator
    to a jitted function. Pass the same function object each time, so that it compiles
    once, and pass the batch, random keys and other arrays for the loss as `args`.

    The operator is symmetric but not known to be positive semidefinite. If the loss is
    convex, tag it: `lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)`.

    Args:
        loss: loss(params, *args) -> a real scalar.
        params: real floating leaves.
        *args: further arguments of the loss, which are not differentiated.

    Returns:
        A symmetric curvature. A product costs one `ok.hvp`. `lx.linearise(C)` keeps
        the pass through the loss, so each further product costs about a quarter less.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: x[0] ** 2 * x[1], jnp.array([1.0, 2.0]))
        >>> C.as_matrix()
        Array([[4., 2.],
               [2., 0.]], dtype=float32)
    """
    check = Check("ok.hessian")
    check.function(loss=loss)
    check.real(params=params)
    return Hessian(loss, params, args)


@lx.linearise.register(Hessian)
def _(operator: Hessian) -> lx.AbstractLinearOperator:
    return linearised(operator, operator.params)
