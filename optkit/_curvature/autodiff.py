"""Curvature by automatic differentiation: products with a matrix nobody forms.

A Hessian-vector product is the derivative of the gradient along the vector: one
forward-over-reverse pass, about two and a half times the cost of the gradient. A
product with the Gauss-Newton matrix JᵀHJ goes through the model's outputs and back: J,
then the Hessian H of the loss at the outputs, then Jᵀ.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import lineax as lx
from jaxtyping import Array, PyTree

from .._check import (
    check_function,
    check_real,
    check_scalar,
    check_vector,
)
from .._types import Params
from .._vector import structure_of
from .base import (
    AbstractCurvature,
    tags_of,
)
from .head import (
    AbstractHead,
    Convex,
)


def hvp(
    loss: Callable[..., Any], params: Params, vector: Params, *args: PyTree
) -> Params:
    """The Hessian of the loss times a vector, ∇²loss(params, *args) v.

    Params and vector stand in the order of `jax.jvp`, of which this is a use. For the
    gradient as well, `ok.value_grad_and_hvp` has it in the same pass.

    Args:
        loss: loss(params, *args) -> a real scalar.
        params: real floating leaves.
        vector: a pytree like the params, with the same shapes and dtypes.
        *args: whatever else the loss takes; not differentiated.

    Returns:
        A pytree like the params.

    Raises:
        ValueError: for a vector unlike the params, or a loss that is not a scalar.
        TypeError: for a loss that is no function, params that are not real floating,
            or a vector of other dtypes.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> ok.hvp(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.ones(2))
        Array([ 6., 12.], dtype=float32)
    """
    check_function("ok.hvp", "loss", loss)
    _check_pair("ok.hvp", params, vector)
    grad = jax.grad(_scalar_loss("ok.hvp", loss, args))
    return jax.jvp(grad, (params,), (vector,))[1]


def value_grad_and_hvp(
    loss: Callable[..., Any],
) -> Callable[..., tuple[Array, Params, Params]]:
    """Makes a function that returns value, gradient and Hessian-vector product.

    All three come from one forward-over-reverse pass, which costs less than the
    gradient and the product one after the other.

    Args:
        loss: loss(params, *args) -> a real scalar.

    Returns:
        A function (params, vector, *args) -> (value, gradient, product). It raises
        what `ok.hvp` raises.

    Raises:
        TypeError: for a loss that is no function.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> f = ok.value_grad_and_hvp(lambda x: jnp.sum(x**3))
        >>> value, grad, product = f(jnp.array([1.0, 2.0]), jnp.ones(2))
        >>> print(value, grad, product)
        9.0 [ 3. 12.] [ 6. 12.]
    """
    call = "ok.value_grad_and_hvp"
    check_function(call, "loss", loss)

    def value_grad_hvp(
        params: Params, vector: Params, *args: PyTree
    ) -> tuple[Array, Params, Params]:
        _check_pair(call, params, vector)
        value_and_grad = jax.value_and_grad(_scalar_loss(call, loss, args))
        primal, tangent = jax.jvp(value_and_grad, (params,), (vector,))
        return *primal, tangent[1]

    return value_grad_hvp


class Hessian(AbstractCurvature):
    """∇²loss at the params: `ok.hessian` makes it."""

    loss: Callable[..., Any] = eqx.field(static=True)
    params: Params
    args: tuple[PyTree, ...]

    @property
    def is_psd(self) -> bool:
        """False: a loss need not be convex."""
        return False

    def mv(self, vector: Params) -> Params:
        """∇²loss v."""
        return hvp(self.loss, self.params, vector, *self.args)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known."""
        raise NotImplementedError(_no_diagonal("ok.hessian"))


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
    check_function("ok.hessian", "loss", loss)
    check_real("ok.hessian", "params", params)
    return Hessian(loss, params, args)


class GaussNewton(AbstractCurvature):
    """JᵀHJ at the params: `ok.gauss_newton` makes it."""

    model_fn: Callable[..., Any] = eqx.field(static=True)
    head: AbstractHead
    params: Params
    inputs: PyTree
    targets: tuple[PyTree, ...]

    @property
    def is_psd(self) -> bool:
        """True, as the head is convex."""
        return True

    def mv(self, vector: Params) -> Params:
        """JᵀHJv."""
        _check_pair("ok.gauss_newton", self.params, vector)
        outputs, jacobian = jax.linearize(self._model, self.params)
        transposed = jax.linear_transpose(jacobian, self.params)
        w = self.head.hvp(outputs, jacobian(vector), *self.targets)
        return transposed(w)[0]

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return structure_of(self.params)

    def diagonal(self) -> Params:
        """Not known."""
        raise NotImplementedError(_no_diagonal("ok.gauss_newton"))

    def _model(self, params: Params) -> PyTree:
        return self.model_fn(params, self.inputs)


def gauss_newton(
    model_fn: Callable[..., Any],
    loss_fn: Callable[..., Any],
    params: Params,
    inputs: PyTree,
    *targets: PyTree,
) -> GaussNewton:
    """The generalised Gauss-Newton matrix of loss_fn(model_fn(params, inputs), ...).

    C = JᵀHJ with J the Jacobian of the outputs z = model_fn(params, inputs) in the
    params, and H the Hessian of loss_fn(z, *targets) in z. It is the Hessian of the
    loss without the curvature of the model: positive semidefinite when loss_fn is
    convex. The mean over examples is the one that loss_fn takes, and no other.

    Args:
        model_fn: model_fn(params, inputs) -> outputs, a pytree of real arrays.
        loss_fn: a convex loss_fn(outputs, *targets) -> a real scalar. A function is
            differentiated twice; `ok.SquaredError()` and `ok.SoftmaxCrossEntropy()`
            have H in closed form.
        params: real floating leaves.
        inputs: the model's second argument; a pytree if it needs several.
        *targets: what loss_fn takes after the outputs. May be left out for the two
            heads above, whose H does not depend on them.

    Returns:
        A positive semidefinite curvature. A product costs about two gradients;
        `lx.linearise(C)` keeps the model's pass for the next one.

    Raises:
        TypeError: for a model or loss that is no function, or params not real floating.

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
    check_function("ok.gauss_newton", "model_fn", model_fn)
    check_function("ok.gauss_newton", "loss_fn", loss_fn)
    check_real("ok.gauss_newton", "params", params)
    head = loss_fn if isinstance(loss_fn, AbstractHead) else Convex(loss_fn)
    return GaussNewton(model_fn, head, params, inputs, targets)


@lx.linearise.register(Hessian)
@lx.linearise.register(GaussNewton)
def _(operator: Hessian | GaussNewton) -> lx.AbstractLinearOperator:
    # mv is linear, so its derivative is itself, with all that does not depend on the
    # vector computed once.
    _, product = jax.linearize(operator.mv, operator.params)
    return lx.FunctionLinearOperator(
        product, operator.in_structure(), tags_of(operator)
    )


def _scalar_loss(
    call: str, loss: Callable[..., Any], args: tuple[PyTree, ...]
) -> Callable[[Params], Array]:
    """The loss as a function of the params, checked to return a real scalar."""

    def scalar_loss(params: Params) -> Array:
        value = loss(params, *args)
        check_scalar(call, value)
        return value

    return scalar_loss


def _check_pair(call: str, params: Params, vector: Params) -> None:
    check_real(call, "params", params)
    check_vector(call, vector, params)


def _no_diagonal(call: str) -> str:
    return (
        f"The diagonal of `{call}` is not known without its matrix. Estimate it with "
        f"`ok.hutchinson_diag(operator, key=key, num_probes=...)`, or for a small "
        f"problem take `jnp.diagonal(operator.as_matrix())`."
    )
