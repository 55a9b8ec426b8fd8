"""Hessian-vector products by automatic differentiation.

The product is the derivative of the gradient along the vector. It takes one
forward-over-reverse pass, about two and a half times the cost of the gradient.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from .._check import Check
from .._linearize import forward_mode
from .._types import Params

_ADVICE = "`ok.empirical_fisher` and `ok.gauss_newton` need first derivatives only."

ValueGradHvp = tuple[Array, Params, Params]


def hvp(
    loss: Callable[..., Any], params: Params, vector: Params, *args: PyTree
) -> Params:
    """Returns the Hessian of a loss times a vector, ∇²loss(params, *args) v.

    `ok.value_grad_and_hvp` also returns the gradient, from the same pass.

    Args:
        loss: loss(params, *args) -> a real scalar.
        params: real floating leaves.
        vector: v, a pytree like the params, with the same shapes and dtypes.
        *args: further arguments of the loss, which are not differentiated.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> ok.hvp(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]), jnp.ones(2))
        Array([ 6., 12.], dtype=float32)
    """
    check = Check("ok.hvp")
    value_fn = check.scalar(loss)
    _check_pair(check, params, vector)
    return product(check, value_fn, params, vector, *args)


def value_grad_and_hvp(loss: Callable[..., Any]) -> Callable[..., ValueGradHvp]:
    """Returns a function (params, vector, *args) -> (value, gradient, product).

    The arguments are those of `ok.hvp`. All three results come from one
    forward-over-reverse pass, which costs less than computing the gradient and the
    product separately.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> f = ok.value_grad_and_hvp(lambda x: jnp.sum(x**3))
        >>> value, grad, product = f(jnp.array([1.0, 2.0]), jnp.ones(2))
        >>> print(value, grad, product)
        9.0 [ 3. 12.] [ 6. 12.]
    """
    check = Check("ok.value_grad_and_hvp")
    value_fn = check.scalar(loss)

    def value_grad_hvp(params: Params, vector: Params, *args: PyTree) -> ValueGradHvp:
        _check_pair(check, params, vector)
        value_and_grad = jax.value_and_grad(lambda p: value_fn(p, *args))
        with forward_mode(check, _ADVICE):
            primal, tangent = jax.jvp(value_and_grad, (params,), (vector,))
        return *primal, tangent[1]

    return value_grad_hvp


def product(
    check: Check,
    loss: Callable[..., Any],
    params: Params,
    vector: Params,
    *args: PyTree,
) -> Params:
    """∇²loss(params, *args) v, without checks."""
    grad = jax.grad(lambda p: loss(p, *args))
    with forward_mode(check, _ADVICE):
        return jax.jvp(grad, (params,), (vector,))[1]


def _check_pair(check: Check, params: Params, vector: Params) -> None:
    check.real(params=params)
    check.like("vector", vector, params, "the params")
