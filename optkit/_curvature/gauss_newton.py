"""The generalised Gauss-Newton matrix as an operator.

A product with C = JᵀHJ applies the Jacobian J of the model, then the Hessian H of the
loss at the outputs, then Jᵀ.
"""

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
from .head import AbstractHead, Convex


class GaussNewton(AbstractCurvature):
    """JᵀHJ at the params. Made by `ok.gauss_newton`."""

    model_fn: Callable[..., Any] = eqx.field(static=True)
    head: AbstractHead
    params: Params
    inputs: PyTree
    targets: tuple[PyTree, ...]
    maker: ClassVar[str] = "ok.gauss_newton"
    is_psd: ClassVar[bool] = True  # the head is convex

    def product(self, vector: Params) -> Params:
        """JᵀHJv."""

        def model(params: Params) -> PyTree:
            return self.model_fn(params, self.inputs)

        outputs, jacobian = jax.linearize(model, self.params)
        w = self.head.hvp(outputs, jacobian(vector), *self.targets)
        return jax.linear_transpose(jacobian, self.params)(w)[0]

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known, so it raises a `NotImplementedError`."""
        raise unknown_diagonal("`C = ok.gauss_newton(...)`", "C")


def gauss_newton(
    model_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Params,
    inputs: PyTree,
    *targets: PyTree,
) -> GaussNewton:
    """Returns the generalised Gauss-Newton matrix of a loss of a model's outputs.

    C = JᵀHJ, with J the Jacobian of the outputs z = model_fn(params, inputs) in the
    params, and H the Hessian of loss_fn(z, *targets) in z. It is the Hessian of the
    loss without the curvature of the model, and it is positive semidefinite if loss_fn
    is convex. Only loss_fn averages over examples.

    Args:
        model_fn: model_fn(params, inputs) -> outputs, a pytree of real arrays.
        loss_fn: a convex loss_fn(outputs, *targets) -> a real scalar. JAX
            differentiates it twice, except that `ok.SquaredError()` and
            `ok.SoftmaxCrossEntropy()` have H in closed form.
        params: real floating leaves.
        inputs: the model's second argument; a pytree if it needs several.
        *targets: further arguments of loss_fn. Optional for the two heads above, whose
            H does not depend on them.

    Returns:
        A positive semidefinite curvature. A product costs about two gradients;
        `lx.linearise(C)` keeps the model's pass for further products.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def model(w, x):
        ...     return x @ w
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> ok.gauss_newton(model, ok.SquaredError(), jnp.zeros(2), x).as_matrix()
        Array([[ 5.,  7.],
               [ 7., 10.]], dtype=float32)

    Reference:
        Schraudolph 2002, Fast curvature matrix-vector products, section 3.
    """
    check = Check("ok.gauss_newton")
    check.function(model_fn=model_fn, loss_fn=loss_fn)
    check.real(params=params)
    head = loss_fn if isinstance(loss_fn, AbstractHead) else Convex(loss_fn)
    return GaussNewton(model_fn, head, params, inputs, targets)


@lx.linearise.register(GaussNewton)
def _(operator: GaussNewton) -> lx.AbstractLinearOperator:
    return linearised(operator, operator.params)
