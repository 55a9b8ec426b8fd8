"""Complex params as pairs of real ones, for optimizers that need real leaves."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array

from .._check import Check
from .._types import Params

_TREES = ("hessian_diag", "grad")  # extra arguments that are trees like the params
_FUNCTIONS = ("value_fn", "obj_fn")  # and functions of the params


class RealAndImaginary(NamedTuple):
    """The two parts of a complex leaf."""

    real: Array
    imaginary: Array


def split_real_and_imaginary(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Runs an optimizer on the real and imaginary parts of complex params.

    A complex leaf z = x + iy becomes a pair (x, y). Real leaves stay as they are.
    Unlike `optax.contrib.split_real_and_imaginary`, it passes extra arguments on:
    `hessian_diag` and `grad` as pairs, `value_fn` and `obj_fn` as functions of pairs,
    all others as they are. So AdaHessian and Sophia train complex params:

        ok.optim.split_real_and_imaginary(
            ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=key))

    As everywhere in optax, pass the conjugate of the gradient that JAX returns, since
    `jax.grad` is ∂f/∂x - i ∂f/∂y. A diagonal given as `hessian_diag` is
    ∂²f/∂x² + i ∂²f/∂y².

    Args:
        tx: any optax transform.

    Returns:
        A transform whose state is that of `tx`.

    Raises:
        TypeError: if `tx` is not an optax transform.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> loss = lambda z: jnp.real(z - 3.0) ** 2 + 50.0 * jnp.imag(z - 1.0j) ** 2
        >>> tx = ok.optim.with_hutchinson(
        ...     ok.optim.adahessian(1.0, eps=0.0), key=jax.random.key(0)
        ... )
        >>> tx, z = ok.optim.split_real_and_imaginary(tx), jnp.array(0j)
        >>> grad = jnp.conj(jax.grad(loss)(z))
        >>> updates, state = tx.update(grad, tx.init(z), z, value_fn=loss)
        >>> print(optax.apply_updates(z, updates))  # Newton's step in both parts
        (3+1j)
    """
    check = Check("ok.optim.split_real_and_imaginary")
    check.transform(tx=tx)
    inner = optax.with_extra_args_support(tx)

    def init(params: Params) -> Any:
        return inner.init(_split(params))

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        trees = {name: _split(extra[name]) for name in _TREES if name in extra}
        functions = {
            name: _of_pairs(extra[name])
            for name in _FUNCTIONS
            if extra.get(name) is not None
        }
        extra = extra | trees | functions
        updates, state = inner.update(_split(updates), state, _split(params), **extra)
        return _merge(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _split(tree: Params) -> Params:
    def one(x: Any) -> Any:
        is_complex = jnp.issubdtype(jnp.result_type(x), jnp.complexfloating)
        return RealAndImaginary(jnp.real(x), jnp.imag(x)) if is_complex else x

    return jax.tree.map(one, tree)


def _merge(tree: Params) -> Params:
    def is_pair(node: Any) -> bool:
        return isinstance(node, RealAndImaginary)

    def one(x: Any) -> Any:
        return lax.complex(*x) if is_pair(x) else x

    return jax.tree.map(one, tree, is_leaf=is_pair)


def _of_pairs(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the split params, with the signature of `fn`."""

    @functools.wraps(fn)
    def wrapped(params: Params, *args: Any, **kwargs: Any) -> Any:
        return fn(_merge(params), *args, **kwargs)

    return wrapped
