"""The Hessian of a loss as an operator: products with a matrix nobody forms."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .._vector import structure_of
from .base import AbstractCurvature, linearised, unknown_diagonal
from .hvp import product


class Hessian(AbstractCurvature):
    """∇²loss at the params: `ok.hessian` makes it."""

    loss: Callable[..., Any] = eqx.field(static=True)
    params: Params
    args: tuple[PyTree, ...]
    maker: ClassVar[str] = "ok.hessian"

    @property
    def is_psd(self) -> bool:
        """False: a loss need not be convex."""
        return False

    def product(self, vector: Params) -> Params:
        """∇²loss v."""
        loss = Check(self.maker).scalar(self.loss)
        return product(loss, self.params, vector, *self.args)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known."""
        raise unknown_diagonal("`C = ok.hessian(...)`", "C")


def hessian(loss: Callable[..., Any], params: Params, *args: PyTree) -> Hessian:
    """The Hessian of a loss as an operator, C = ∇²loss(params, *args).

    The loss is static and `params` and `args` are leaves, so the operator crosses
    `jax.jit`; pass the same function object for it to compile once. Arrays that the
    loss reads belong in `args`. The batch, and any randomness in the loss, are fixed
    by the args: otherwise products would be of different matrices.

    Symmetric, and not claimed to be positive semidefinite. Where the loss is known
    to be convex, `lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)` says so.

    Args:
        loss: loss(params, *args) -> a real scalar.
        params: real floating leaves.
        *args: whatever else the loss takes; not differentiated.

    Returns:
        A symmetric curvature; a product costs one `ok.hvp`. `lx.linearise(C)` keeps
        the pass through the loss, so that a further product costs about a quarter less.

    Raises:
        TypeError: for a loss that is no function, or params not real floating.

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
