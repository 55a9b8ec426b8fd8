"""Hessian-vector products by automatic differentiation.

The product is the derivative of the gradient along the vector: one forward-over-reverse
pass, about two and a half times the cost of the gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import Params


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
    check = Check("ok.hvp")
    value_fn = check.scalar(loss)
    check_pair(check, params, vector)
    return product(value_fn, params, vector, *args)


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
    check = Check("ok.value_grad_and_hvp")
    value_fn = check.scalar(loss)

    def value_grad_hvp(
        params: Params, vector: Params, *args: PyTree
    ) -> tuple[Array, Params, Params]:
        check_pair(check, params, vector)
        value_and_grad = jax.value_and_grad(lambda p: value_fn(p, *args))
        primal, tangent = jax.jvp(value_and_grad, (params,), (vector,))
        return *primal, tangent[1]

    return value_grad_hvp


def product(
    loss: Callable[..., Any], params: Params, vector: Params, *args: PyTree
) -> Params:
    """∇²loss(params, *args) v, without checks."""
    grad = jax.grad(lambda p: loss(p, *args))
    return jax.jvp(grad, (params,), (vector,))[1]


def check_pair(check: Check, params: Params, vector: Params) -> None:
    """Raises unless the params are real, and the vector is like them."""
    check.real(params=params)
    check.like("vector", vector, params, "the params")
