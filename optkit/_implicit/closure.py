"""What a function closes over, made visible: its arrays become leaves.

Arrays that hide in a closure may be traced, and a rule for derivatives does not see
them. And outside of `jax.jit` a derivative is to be compiled once, which needs to know
whether the function is still what it was.
"""

import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._types import Params

# What a Python function closes over does not show in the text of a program.
_FUNCTIONS = "custom_jvp_call", "custom_vjp_call", " at 0x"


class Captured(eqx.Module):
    """A program, and its arrays."""

    arrays: list[Array]
    program: "_Program" = eqx.field(static=True)

    def __call__(self, y: Params, args: PyTree) -> PyTree:
        """What the function returns."""
        rest = self.program.rest
        return eqx.tree_at(lambda r: r.consts, rest, self.arrays)(y, args)


def capture_constants(
    function: Callable[..., Any], identity: Any, y: Params, args: PyTree
) -> Captured:
    """The function as it is traced at (y, args), with the arrays that it closes over.

    Args:
        function: of y and args.
        identity: the same object in each call, if the function is.
        y: a pytree of arrays.
        args: a pytree.

    Returns:
        An equal function for arguments of the same shapes.
    """
    converted: Any = eqx.filter_closure_convert(function, y, args)
    rest = eqx.tree_at(lambda c: c.consts, converted, [])
    arrays = [jnp.asarray(x) for x in converted.consts]  # some are NumPy's
    return Captured(arrays, _Program(identity, rest))


class _Program:
    """What a function was traced to, without the arrays that it closes over.

    Equal where identity and text are: the text tells Python numbers that have changed.
    One that calls Python functions, such as the rule of a `jax.custom_jvp`, equals
    itself alone.
    """

    def __init__(self, identity: Any, rest: Any) -> None:
        # Weakly if it can be: what it closes over may be of a trace that is over.
        try:
            self.identity = weakref.ref(identity)
        except TypeError:
            self.identity = lambda: identity
        self.rest, self.text = rest, str(rest.jaxpr)
        self.has_functions = any(mark in self.text for mark in _FUNCTIONS)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, _Program)
            and not self.has_functions
            and self.identity() is other.identity() is not None
            and self.text == other.text
        )

    def __hash__(self) -> int:
        return hash(self.text)
