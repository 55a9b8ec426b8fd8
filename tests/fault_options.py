"""The options that are checked, by kind, with the values that must be refused."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from fault_outcomes import INF, NAN


class Option(NamedTuple):
    """How an option is checked, with values that must be refused."""

    wanted: str  # what the message asks for
    values: tuple[Any, ...]  # raise ValueError
    others: tuple[Any, ...] = ()  # of another type: raise TypeError
    asked: str = "{}"  # what the message asks for then

    def called(self, name: str) -> "Option":
        """The same, of an argument that the message calls this."""
        return self._replace(
            wanted=self.wanted.format(name), asked=self.asked.format(name)
        )


_NUMBERS = ("0.1", True)
DECAY = Option("0 <= {} < 1", (-0.1, 1.0, NAN), _NUMBERS)
NON_NEGATIVE = Option("finite {} >= 0", (-1.0, NAN, INF), _NUMBERS)
POSITIVE = Option("finite {} > 0", (0.0, -1.0, NAN, INF), _NUMBERS)
COUNT = Option("integer {} >= 1", (0, -1, 1.5, True, "2"))
FUNCTION = Option("", (), (3.0, "f"), "function for {}")
TRANSFORM = Option("", (), (0.1, "sgd"), "optax transform for {}")
METHOD = Option("", (), (3.0, "cg"), "for {}")
DTYPE = Option("", (), (int, jnp.complex64), "floating {}")
KEY = Option("", (), (0, jr.split(jr.key(0)), np.ones(2, "f4")), "one random key")
FRACTION = Option("0 <= {} < 1", (-0.1, 1.0, NAN, "0.1", True))
FLAG = Option("", (), (1, "yes"), "True or False for {}")
OPERATOR = Option(
    "symmetric",
    (lx.MatrixLinearOperator(jnp.ones((3, 3), "f4")),),
    (np.eye(3, dtype="f4"), lx.DiagonalLinearOperator(jnp.ones(3, "c8"))),
    "got",
)
OPTIONS = {
    "a decay": DECAY,
    "a number >= 0": NON_NEGATIVE,
    "a number > 0": POSITIVE,
    "a fraction": FRACTION,
    "a count": COUNT,
    "a function": FUNCTION,
    "an optax transform": TRANSFORM,
    "a method": METHOD,
    "a floating dtype": DTYPE,
    "a random key": KEY,
    "a flag": FLAG,
    "a symmetric real operator": OPERATOR,
}


def shown(value: Any) -> str:
    """A bad value, in one or two words."""
    if isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, list):
        return "a list"
    leaves = jax.tree.leaves(value)
    name = "" if leaves == [value] else f"{type(value).__name__} of "
    return f"{name}{leaves[0].dtype}{leaves[0].shape}"
