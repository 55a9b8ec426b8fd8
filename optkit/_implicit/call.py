"""How a decorated solver is called: its arguments, its types, and NumPy under `jit`."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from .._check import Check

P = ParamSpec("P")
"""The parameters of the user's solver, which the decorated one has too."""

R = TypeVar("R")
"""What it returns."""

_HOST = (
    "ran a solver that needs the value of an array, which does not exist under "
    "`jax.jit`, `jax.vmap` or `jax.lax.scan`. If the solver is in NumPy or SciPy, "
    "decorate it with `ok.host_solver` first; otherwise use `jax.lax.while_loop` and "
    "`jnp.where` in place of `while` and `if`."
)
_CONVERSIONS = jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError


def bound(
    check: Check, solve: Callable[..., Any], inputs: Any, options: dict[str, Any]
) -> tuple[PyTree, PyTree, dict[str, Any]]:
    """Returns y0, args and further keywords, however the caller passed them."""
    if len(inputs) == 2 and not options:
        return *inputs, {}
    values, rest, theirs = list(inputs), dict(options), _parameters(solve)
    for name, own in list(zip(("y0", "args"), theirs, strict=True))[len(values) :]:
        found = [key for key in (name, own.name) if key in rest]
        default = [] if own.default is own.empty else [own.default]
        given = [rest.pop(key) for key in dict.fromkeys(found)] or default
        text = f"needs (y0, args), got {name} {len(given)} times."
        check.that(len(given) == 1, text, TypeError)
        values += given
    text = f"needs (y0, args) and keywords, got {len(values)} arguments."
    check.that(len(values) == 2, text, TypeError)
    for name, value in rest.items():
        arrays = filter(eqx.is_inexact_array, jax.tree.leaves(value))
        text = f"got a floating array in {name}=. It would have no derivative: put it"
        check.that(not any(True for _ in arrays), f"{text} into args.", TypeError)
    return *values, rest


@contextmanager
def on_tracers(check: Check) -> Iterator[None]:
    """Names `ok.host_solver` where a solver asks for the value of a traced array."""
    try:
        yield
    except _CONVERSIONS as error:
        raise TypeError(f"`{check.call}` {_HOST}") from error


def _parameters(solve: Callable[..., Any]) -> list[inspect.Parameter]:
    """The first two parameters of the solver."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind) for name in ("y0", "args")]
    try:
        found = list(inspect.signature(solve).parameters.values())
    except (TypeError, ValueError):  # some compiled functions have no signature
        return named
    positional = [p for p in found if p.kind <= kind][:2]
    return positional + named[len(positional) :]
