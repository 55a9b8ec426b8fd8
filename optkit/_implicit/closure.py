"""Closures as pytrees: the arrays that a function closes over become leaves.

Arrays in a closure may be traced, but a derivative rule does not see them. They also
decide whether a derivative outside `jax.jit` can reuse a compiled program, which is
safe only if the function is still the same.
"""

import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._types import Params

# Signs of Python functions, whose closures the text of a program does not show.
_PYTHON_CALLS = "custom_jvp_call", "custom_vjp_call", " at 0x"


class Captured(eqx.Module):
    """A traced function, split into its arrays and its program."""

    arrays: list[Array]
    program: "_Program" = eqx.field(static=True)

    @property
    def is_comparable(self) -> bool:
        """Whether a later trace of the same function is known to be the same."""
        return self.program.is_comparable

    def __call__(self, y: Params, args: PyTree) -> PyTree:
        """The value of the function."""
        converted = self.program.converted
        return eqx.tree_at(lambda c: c.consts, converted, self.arrays)(y, args)


def capture_constants(
    function: Callable[..., Any], source: Any, y: Params, args: PyTree
) -> Captured:
    """Traces a function, which calls the user's function `source`, at (y, args)."""
    converted: Any = eqx.filter_closure_convert(function, y, args)
    arrays = [jnp.asarray(x) for x in converted.consts]  # some are NumPy arrays
    converted = eqx.tree_at(lambda c: c.consts, converted, [])
    return Captured(arrays, _Program(source, converted))


class _Program:
    """A traced function without its arrays, hashable: the key of compiled programs.

    Two programs are equal if their source and text are. A function that the same line
    of code makes again has the same source. If a Python number in it changes, so does
    the text. A program that calls Python functions, such as the rule of a
    `jax.custom_jvp`, equals only itself.
    """

    def __init__(self, source: Any, converted: Any) -> None:
        # Weak if possible: the source may close over a trace that has ended.
        try:
            self.source = weakref.ref(source)
        except TypeError:
            self.source = lambda: source
        self.code = getattr(source, "__code__", None)
        self.converted, self.text = converted, str(converted.jaxpr)
        self.is_comparable = not any(mark in self.text for mark in _PYTHON_CALLS)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not (isinstance(other, _Program) and self.is_comparable):
            return False
        is_same = self.source() is other.source() is not None
        is_same |= self.code is other.code is not None
        return is_same and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)
