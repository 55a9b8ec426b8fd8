"""Derivatives along a vector, even of functions with only a reverse-mode rule.

A `jax.custom_vjp` gives u ↦ Jᵀu, which is linear in u. So the derivative of that map
is its transpose, v ↦ Jv.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._check import Check

Linear = Callable[[PyTree], PyTree]

_REVERSE_ONLY = "custom_lin"  # JAX's name for the tangent of a `jax.custom_vjp`
_MISSING = "custom_vjp", "custom_lin", "allbacks do not support", "ule for"
_ADVICE = (
    "cannot differentiate the function forwards: it calls a `jax.custom_vjp`, a "
    "`jax.pure_callback` or a kernel without a rule that JAX can transpose. Write the "
    "rule in JAX operations, or use `jax.custom_jvp`."
)


@contextmanager
def forward_mode(check: Check, advice: str = "") -> Iterator[None]:
    """Names the call in the errors of functions that lack a derivative rule."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if not any(mark in str(error) for mark in _MISSING):
            raise
        raise TypeError(f"`{check.call}` {_ADVICE} {advice}".rstrip()) from error


def linearize(
    check: Check, f: Linear, x: PyTree, *, advice: str = "", is_needed: bool = True
) -> tuple[PyTree, Linear]:
    """Returns f(x) and v ↦ Jv, with everything that does not depend on v precomputed.

    If `is_needed` is false, because the transpose may be enough, the error comes only
    when the product is evaluated.

    Raises:
        TypeError: naming the call, if a `jax.custom_vjp` in f has a rule that cannot be
            transposed.
    """
    with forward_mode(check, advice):
        value, product = jax.linearize(f, x)
    if not _is_reverse_only(jax.make_jaxpr(product)(x).jaxpr):
        return value, product
    zeros = jax.tree.map(jnp.zeros_like, value)
    pull = jax.vjp(f, x)[1]
    try:
        with forward_mode(check, advice):
            _, push = jax.vjp(lambda u: pull(u)[0], zeros)
    except TypeError:
        if is_needed:
            raise

        def named(v: PyTree) -> PyTree:
            with forward_mode(check, advice):
                return product(v)

        return value, named
    return value, lambda v: push(v)[0]


def _is_reverse_only(jaxpr: Any) -> bool:
    """Whether the tangent of a `jax.custom_vjp` occurs, also in an inner program."""
    for equation in jaxpr.eqns:
        is_program = functools.partial(_has, "eqns")
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        if equation.primitive.name == _REVERSE_ONLY:
            return True
        if any(map(_is_reverse_only, filter(is_program, inner))):
            return True
    return False


def _has(name: str, value: Any) -> bool:
    return hasattr(value, name)
