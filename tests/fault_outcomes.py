"""How a fault may end, and how that is judged.

There are four ways: an error that names the call and says what to do, a reported
result, NaN that shows, and a right answer. Anything else is silently wrong.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit as ok

INF, NAN = float("inf"), float("nan")


@dataclass(frozen=True)
class Raises:
    """An error of this type, whose message names the call and says what to do."""

    error: type[Exception]
    match: str = ""
    call: str = ""  # where it is not the row's

    def judge(self, call: str, found: Any) -> str:
        """What is wrong, or nothing."""
        if not isinstance(found, self.error):
            return f"did not raise {self.error.__name__}: {found!r}"
        text, call = str(found), self.call or call
        if self.match not in text:
            return f"no {self.match!r} in: {text}"
        # `ok.hessian`, `C = ok.hessian(...)`, `ok.invert(...).solve`
        if not re.search(rf"`(\w+ = )?{re.escape(call)}(\([^`]*\))?(\.\w+)?`", text):
            return f"does not name `{call}`: {text}"
        says_what = re.search(r"\bneeds\b|\btakes\b|[.:] [A-Z`][a-z]+", text)
        return "" if says_what else f"does not say what to do: {text}"

    def __str__(self) -> str:
        return f"`{self.error.__name__}`"


@dataclass(frozen=True)
class Foreign:
    """An error of JAX's or optax's own that is clear enough."""

    error: type[Exception]
    match: str

    def judge(self, call: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del call
        is_it = isinstance(found, self.error) and self.match in str(found)
        return "" if is_it else f"did not raise {self.error.__name__}: {found!r}"

    def __str__(self) -> str:
        return f"`{self.error.__name__}`"


@dataclass(frozen=True)
class Reports:
    """An item of `ok.RESULTS`, in what is returned or as the text of an error."""

    result: str

    def judge(self, call: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del call
        wanted = getattr(ok.RESULTS, self.result)
        if isinstance(found, Exception):
            text = ok.RESULTS[wanted]
            is_it = isinstance(found, RuntimeError) and text in str(found)
            return "" if is_it else f"raised {found!r}"
        item = type(ok.RESULTS.successful)
        leaves = jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, item))
        got = [x for x in leaves if isinstance(x, item)]
        if any(bool(jnp.any(x == wanted)) for x in got):
            return ""
        return f"did not report {self.result}: {[ok.RESULTS[x] for x in got]}"

    def __str__(self) -> str:
        return f"reports `{self.result}`"


@dataclass(frozen=True)
class Shows:
    """NaN or infinity in what is returned."""

    def judge(self, call: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del call
        if isinstance(found, Exception):
            return f"raised {found!r}"
        leaves = [np.asarray(x) for x in jax.tree.leaves(found)]
        leaves = [x for x in leaves if x.dtype.kind in "fcV"]
        if any(not np.all(np.isfinite(x.astype(complex))) for x in leaves):
            return ""
        return f"finite: {found}"

    def __str__(self) -> str:
        return "shows NaN"


def finite(found: Any) -> bool:
    """Whether no number is NaN or infinite."""
    return all(
        np.all(np.isfinite(np.float64(x)))
        for x in jax.tree.leaves(found)
        if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    )


def all_zero(found: Any) -> bool:
    """Whether all numbers are zero."""
    return not any(np.any(x) for x in jax.tree.leaves(found))


@dataclass(frozen=True)
class Right:
    """The right answer, according to an oracle."""

    oracle: Callable[[Any], Any] = finite
    word: str = "right"  # what is right about it

    def judge(self, call: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del call
        if isinstance(found, Exception):
            return f"raised {found!r}"
        return "" if bool(self.oracle(found)) else f"wrong: {found}"

    def __str__(self) -> str:
        return self.word


Outcome = Raises | Foreign | Reports | Shows | Right
