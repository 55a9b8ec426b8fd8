"""What a fault is, what may come of it, and how that is judged.

A fault is one bad input to one public name. Its outcome is declared beside it, and is
one of four: an error that names the call and says what to do, a result that is
reported, NaN that is seen, or a right answer. There is no fifth: what is silently wrong
fails the judge.
"""

import ast
import builtins
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

import optkit as ok

KINDS = {
    "nan": "NaN or infinity in an array",
    "zero": "zeros, where a ratio or a root is taken of them",
    "huge": "numbers near the largest of the dtype",
    "tiny": "numbers near the smallest of the dtype",
    "singular": "singular, indefinite or infeasible: no answer exists",
    "empty": "no leaves, no entries, or no examples",
    "tree": "a tree of another structure",
    "shape": "another shape, or leading axes that differ",
    "dtype": "integers, complex numbers, or another precision",
    "option": "a hyperparameter that is negative, zero, NaN or out of range",
    "missing": "an argument left out",
    "function": "a function that returns what it must not",
    "object": "another kind of object, such as a number for a key",
}


@dataclass(frozen=True)
class Raises:
    """An error of this type, whose message names the call and says what to do."""

    error: type[Exception]
    match: str = ""
    call: str = ""  # where it is another than the name under test
    word = "raises"

    def judge(self, name: str, found: Any) -> str:
        """What is wrong, or nothing."""
        if not isinstance(found, self.error):
            return f"did not raise {self.error.__name__}: {found!r}"
        text = str(found)
        call = self.call or f"ok.{name}"
        if f"`{call}" not in text:
            return f"does not name `{call}`: {text}"
        if not re.search(r"\bneeds\b|[.:] [A-Z][a-z]+|needs|takes", text):
            return f"does not say what to do: {text}"
        return "" if self.match in text else f"no {self.match!r} in: {text}"

    def __str__(self) -> str:
        return f"`{self.error.__name__}`"


@dataclass(frozen=True)
class Reports:
    """An item of `ok.RESULTS`, in what is returned or as the text of an error."""

    result: str
    word = "reports"

    def judge(self, name: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del name
        wanted = getattr(ok.RESULTS, self.result)
        if isinstance(found, Exception):
            text = ok.RESULTS[wanted]
            is_it = isinstance(found, RuntimeError) and text in str(found)
            return "" if is_it else f"raised {found!r}"
        for got in _results(found):
            if bool(jnp.any(got == wanted)):
                return ""
        return (
            f"did not report {self.result}: {[ok.RESULTS[r] for r in _results(found)]}"
        )

    def __str__(self) -> str:
        return f"`{self.result}`"


@dataclass(frozen=True)
class Shows:
    """NaN or infinity in what is returned."""

    word = "shows NaN"

    def judge(self, name: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del name
        if isinstance(found, Exception):
            return f"raised {found!r}"
        leaves = [np.asarray(x) for x in jax.tree.leaves(found)]
        leaves = [x for x in leaves if x.dtype.kind in "fcV"]
        if any(not np.all(np.isfinite(x.astype(complex))) for x in leaves):
            return ""
        return f"finite: {found}"

    def __str__(self) -> str:
        return "NaN"


@dataclass(frozen=True)
class Right:
    """The answer is what it should be: the oracle says so."""

    oracle: Callable[[Any], Any]
    word = "is right"

    def judge(self, name: str, found: Any) -> str:
        """What is wrong, or nothing."""
        del name
        if isinstance(found, Exception):
            return f"raised {found!r}"
        return "" if bool(self.oracle(found)) else f"wrong: {found}"

    def __str__(self) -> str:
        return "right"


Outcome = Raises | Reports | Shows | Right


@dataclass(frozen=True)
class Fault:
    """One bad input to one public name."""

    name: str  # without "ok."
    kind: str
    what: str
    run: Callable[[], Any]
    outcome: Outcome


def table(namespace: dict[str, Any], text: str) -> list[Fault]:
    """Reads faults from a table: names, and below them kind, expression and outcome.

        adan sophia (ok.optim.scale_by_adan):
            option  ok.{}(-1.0)  -> ValueError: learning_rate

    `{}` stands for the name. An outcome is an error and a part of its message, an item
    of `ok.RESULTS`, `NaN`, or `right`, with an expression of the result x that is then
    true. In parentheses stands the call that errors name, where it is another one.

    Returns:
        One fault for each name and row.

    Raises:
        ValueError: for a row that cannot be read.
    """
    rows, names, call = [], [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.endswith(":") and " -> " not in line:
            head, _, call = line[:-1].partition(" (")
            names, call = head.split(), call.rstrip(")")
            continue
        left, arrow, outcome = re.sub(r"\s+", " ", line).rpartition(" -> ")
        kind, _, expression = left.partition(" ")
        if not arrow or kind not in KINDS:
            raise ValueError(f"no row of a table: {line}")
        for name in names:
            code = expression.strip().replace("{}", name)
            end = _outcome(outcome.strip().replace("{}", name), call, namespace)
            rows.append(Fault(name, kind, code, partial(eval, code, namespace), end))
    return rows


def _outcome(text: str, call: str, namespace: dict[str, Any]) -> Outcome:
    word, _, rest = text.partition(":")
    rest = rest.strip()
    if word == "right":
        code = rest or "finite(x)"
        return Right(lambda x: eval(code, namespace | {"finite": finite, "x": x}))
    if word == "NaN":
        return Shows()
    if hasattr(builtins, word):
        return Raises(getattr(builtins, word), rest, call)
    getattr(ok.RESULTS, word)  # there is one of that name
    return Reports(word)


@contextmanager
def as_users_have_it() -> Iterator[None]:
    """float32, standard promotion, and no type checks but the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def verdict(fault: Fault) -> str:
    """What is wrong with how a fault ended; empty if it is as declared."""
    with as_users_have_it():
        try:
            found = jax.block_until_ready(fault.run())
        except Exception as error:  # any, so as to name it
            found = error
        return fault.outcome.judge(fault.name, found)


def finite(found: Any) -> bool:
    """Whether nothing is NaN or infinite."""
    return all(
        np.all(np.isfinite(np.float64(x)))
        for x in jax.tree.leaves(found)
        if jnp.issubdtype(jnp.result_type(x), jnp.floating)
    )


def _results(found: Any) -> list[Any]:
    item = type(ok.RESULTS.successful)
    nodes = jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, item))
    return [x for x in nodes if isinstance(x, item)]


def public_names() -> dict[str, Any]:
    """Every public name below `ok`, without its prefix, and what it is."""
    found = {}
    for prefix, module in (
        ("", ok),
        ("optim.", ok.optim),
        ("bilevel.", ok.bilevel),
        ("solvers.", ok.solvers),
        ("optimality.", ok.optimality),
        ("prox.", ok.prox),
        ("projections.", ok.projections),
        ("plot.", ok.plot),
    ):
        for name in _exported(module):
            found[prefix + name] = getattr(module, name)
    return found


def _exported(module: Any) -> list[str]:
    """Names that a module defines, or imports as themselves, and does not hide."""
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.asname == a.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    modules = {
        "bilevel",
        "optim",
        "optimality",
        "plot",
        "projections",
        "prox",
        "solvers",
    }
    return sorted(n for n in names if n[0] != "_" and n not in modules)
