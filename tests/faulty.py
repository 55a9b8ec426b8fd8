"""What a fault is, and what every object of a kind must survive.

A `Fault` is one bad input. A `Kind` of object has a list of faults that each of its
objects must survive. A `Row` makes and calls one public object; it names the options
that are checked, the faults of this object alone, and where it ends differently from
its kind. Tables of faults and rows are laid out by hand, in a line or two each.
"""

import ast
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import jax
import jaxtyping
from fault_options import Option, shown
from fault_outcomes import Outcome, Raises

import optkit as ok

BAD = {
    "nan": "NaN or infinity",
    "zero": "zeros",
    "huge": "huge numbers",
    "tiny": "tiny numbers",
    "singular": "no answer exists",
    "empty": "empty input",
    "tree": "a different structure",
    "shape": "a different shape",
    "dtype": "a different dtype",
    "option": "an option out of range",
    "missing": "a missing argument",
    "function": "a wrong function",
    "object": "an object of the wrong kind",
}


@dataclass(frozen=True)
class Fault:
    """One bad input."""

    bad: str  # a key of `BAD`
    what: str  # in words; no two faults of a row share them
    outcome: Outcome
    feed: Callable[[Any], Any]  # gives it to the object of a row


def named(call: str, faults: Sequence[Fault]) -> dict[str, Outcome]:
    """The outcomes of these faults, with errors that name another call."""
    return {
        fault.what: replace(fault.outcome, call=call)
        for fault in faults
        if isinstance(fault.outcome, Raises)
    }


def calls(function: Callable[..., Any], **made: Callable[[], Any]) -> Any:
    """Calls a function with what these return, or with options instead of them."""

    def make(*args: Any, **options: Any) -> Any:
        good = {name: f() for name, f in made.items() if name not in options}
        return function(*args, **good, **options)

    return make


@dataclass(frozen=True)
class Row:
    """One public object. Each kind adds to it what its faults call."""

    name: str  # without "ok."
    make: Callable[..., Any]  # makes or calls it, with these instead of good options
    options: Mapping[str, Option] = field(default_factory=dict)
    _: KW_ONLY
    faults: Sequence[Fault] = ()
    # Outcomes that differ from the kind's, by what the fault is.
    differs: Mapping[str, Outcome] = field(default_factory=dict)
    covers: tuple[str, ...] = ()  # other public names that these faults try

    def with_option(self, name: str, value: Any) -> Any:
        """The object with another value of an option."""
        return self.make(**{name: value})


@dataclass(frozen=True)
class Trial:
    """One fault of one object, and how it must end."""

    row: Row
    fault: Fault
    outcome: Outcome
    option: Option | None = None

    def __str__(self) -> str:
        return f"{self.row.name}: {self.fault.what}"


@dataclass(frozen=True)
class Kind:
    """A kind of object: what each of them must survive, and what there is of it."""

    title: str
    faults: Sequence[Fault]
    rows: Sequence[Row]

    def trials(self) -> Iterator[Trial]:
        """Every fault of every object."""
        for row in self.rows:
            options = [(None, fault) for fault in (*self.faults, *row.faults)]
            options += _option_faults(row)
            words = [fault.what for _, fault in options]
            assert len(words) == len(set(words)), f"{row.name}: two faults of one name"
            assert set(row.differs) <= set(words), f"{row.name}: no {row.differs}"
            for option, fault in options:
                outcome = row.differs.get(fault.what, fault.outcome)
                yield Trial(row, fault, outcome, option)


def _option_faults(row: Row) -> Iterator[tuple[Option, Fault]]:
    for name, option in row.options.items():
        for value in option.values:
            end = Raises(ValueError, option.wanted.format(name))
            yield option, _option_fault("option", name, value, end)
        for value in option.others:
            end = Raises(TypeError, option.asked.format(name))
            yield option, _option_fault("object", name, value, end)


def _option_fault(bad: str, name: str, value: Any, outcome: Raises) -> Fault:
    what = f"{name} = {shown(value)}"
    return Fault(bad, what, outcome, lambda row: row.with_option(name, value))


@contextmanager
def as_users_have_it() -> Iterator[None]:
    """float32, standard promotion, and no type checks but the library's own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def verdict(trial: Trial) -> str:
    """What is wrong with how a trial ended; empty if it is as declared."""
    with as_users_have_it():
        try:
            found = jax.block_until_ready(trial.fault.feed(trial.row))
        except Exception as error:  # any, so as to name it
            found = error
        return trial.outcome.judge(f"ok.{trial.row.name}", found)


def public_names() -> dict[str, Any]:
    """Every public name below `ok`, without its prefix, and what it is."""
    found = {}
    for name in _exported(ok):
        value = getattr(ok, name)
        if inspect.ismodule(value):
            names = _exported(value)
            found |= {f"{name}.{inner}": getattr(value, inner) for inner in names}
        else:
            found[name] = value
    return found


def _exported(module: Any) -> list[str]:
    """Names that a module defines, or imports as themselves, and does not hide."""
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom):
            names += [a.name for a in node.names if a.asname == a.name]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    return sorted(name for name in names if name[0] != "_")
