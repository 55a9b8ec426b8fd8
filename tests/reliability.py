"""Writes `docs/reliability.md` from what the tests declare.

    python tests/reliability.py --write

Each section is a function without arguments that returns Markdown, made from the
catalogue or from a table that tests check. `tests/test_faults.py` asserts that the
committed page is what this writes.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import killed
import properties
from fault_options import OPTIONS, shown
from fault_outcomes import Foreign, Raises, Reports, Right, Shows
from faults import CATALOGUE, KINDS, names_tried
from faulty import BAD, Kind

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


def figures() -> str:
    """What was tried, in numbers."""
    ended = [type(trial.outcome) for trial in CATALOGUE]
    return f"""# Reliability

This page shows what happens when the input is bad. The tests run everything on it as
users do: in float32, with only the library's own type checks.
`python tests/reliability.py --write` writes the page from what the tests declare.

| | |
|---|---:|
| public functions and classes tried | {len(names_tried())} |
| faults tried | {len(CATALOGUE)} |
| ... raise an error that names the call and says what to do | {ended.count(Raises)} |
| ... raise an error of JAX or optax that is clear enough | {ended.count(Foreign)} |
| ... report what went wrong, as an item of `ok.RESULTS` | {ended.count(Reports)} |
| ... show NaN wherever the bad input has an effect | {ended.count(Shows)} |
| ... have a right answer, and return it | {ended.count(Right)} |
| ... are silently wrong | 0 |
| random inputs tried on each commit | {sum(properties.EXAMPLES.values())} |"""


def options() -> str:
    """Which values of which options are refused."""
    table = []
    for name, option in OPTIONS.items():
        tried = {
            (trial.row.name, trial.fault.what.partition(" = ")[0])
            for trial in CATALOGUE
            if trial.option is not None and trial.option[1:3] == option[1:3]
        }
        cells = [_list(map(shown, values)) for values in (option.values, option.others)]
        table.append(f"| {name} | {cells[0]} | {cells[1]} | {len(tried)} |")
    rows = "\n".join(table)
    return f"""## Options

An option out of range raises an error where it is passed, before anything is computed.

| option | `ValueError` for | `TypeError` for | options tried |
|---|---|---|---:|
{rows}"""


def kinds() -> str:
    """What happens to each kind of object."""
    head = """## Bad input

Each object of a kind is tried with each fault in its table. In compiled code, what is
reported may arrive as a `RuntimeError` with the text of the result."""
    grouped: dict[int, list[Kind]] = {}
    for kind in KINDS:
        if kind.faults:
            grouped.setdefault(id(kind.faults), []).append(kind)
    tables, small, differing = [head], [], []
    for same in grouped.values():
        title = " and ".join([same[0].title, *(k.title.lower() for k in same[1:])])
        kind = Kind(title, same[0].faults, [row for k in same for row in k.rows])
        rows, exceptions = list(_rows(kind)), _exceptions(kind)
        if len(kind.rows) == 1 or len(rows) < 5:
            small += [f"| {kind.title} {row}" for row in rows]
            differing += exceptions
        else:
            columns = ["| bad input | what happens | tried |", "|---|---|---:|"]
            tables.append("\n".join([f"### {title}", "", *columns, *rows]))
            tables += _except(exceptions)
    columns = ["| object | bad input | what happens | tried |", "|---|---|---|---:|"]
    tables.append("\n".join(["### Others", "", *columns, *small]))
    return "\n\n".join(tables + _except(differing))


def singular() -> str:
    """What happens if no answer exists."""
    found: dict[str, dict[str, list[str]]] = {}
    for trial in CATALOGUE:
        if trial.fault.bad == "singular":
            problems = found.setdefault(str(trial.outcome), {})
            problems.setdefault(trial.fault.what, []).append(f"`ok.{trial.row.name}`")
    rows = []
    for end, parts in found.items():
        cell = "; ".join(f"{what} ({_list(who)})" for what, who in parts.items())
        rows.append(f"| {end} | {cell} |")
    table = "\n".join(rows)
    return f"""## If no answer exists

| what happens | problem |
|---|---|
{table}"""


def random_input() -> str:
    """What was tried on random input."""
    tried = [
        f"{name.replace('_', ' ')} ({count})"
        for name, count in sorted(properties.EXAMPLES.items())
    ]
    properties_tried = "; ".join(tried)
    return f"""## Random input

These properties are tried on random pytrees: nested, with None leaves, scalars, empty
arrays and up to three axes; in float16, bfloat16, float32, float64 and mixed; with
numbers of size 1e-30 to 1e30. Every run draws the same inputs;
`HYPOTHESIS_PROFILE=long` tries {properties.LONG} times as many. With their number:

{properties_tried}."""


def limits() -> str:
    """What is not detected."""
    return """## What is not detected

- A batch, a loss or a label that is wrong but finite.
- NaN inside `ok.LowRank`, `ok.hessian` and other operators: it shows up in their
  products, but only a solve reports it.
- An indefinite curvature in `ok.Nystrom`, if its sketch meets no negative eigenvalue:
  the solve counts as a success. `ok.CG` detects a negative eigenvalue only if its
  right-hand side has a component there.
- A singular Jacobian whose linear system has a solution: the derivative is then one of
  many. `ok.check_implicit` detects it.
- A traced damping or decay out of range: reading it would interrupt a compiled step.
- Numbers below the smallest normal one (1e-38 in float32): the hardware treats them as
  zero.
- Wrong products from the CPU compiler. jaxlib 0.10.2 and 0.12.0 compile some fused
  operations wrongly, in any program, so that compiled and uncompiled code differ
  (jax-ml/jax#39103 is one case). The environment variable
  `XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=`, with nothing after the last `=`,
  turns these fusions off. The final residual of `ok.CG` and `ok.GMRES` detects a
  product that differs from call to call, but not one that is always wrong in the same
  way."""


SECTIONS = [figures, options, kinds, singular, random_input, killed.section, limits]


def page() -> str:
    """The whole page."""
    return "\n\n".join(section().strip() for section in SECTIONS) + "\n"


def _rows(kind: Kind) -> Iterator[str]:
    """A row for each kind of bad input."""
    for bad, words in BAD.items():
        ends: dict[str, list[str]] = {}
        for fault in kind.faults:
            if fault.bad == bad:
                ends.setdefault(str(fault.outcome), []).append(fault.what)
        cell = "; ".join(f"{_list(what)}: **{end}**" for end, what in ends.items())
        if ends:
            count = sum(map(len, ends.values())) * len(kind.rows)
            yield f"| {words} | {cell} | {count} |"


def _exceptions(kind: Kind) -> list[str]:
    """The objects that end differently from their kind."""
    usual = {fault.what: str(fault.outcome) for fault in kind.faults}
    found: dict[tuple[str, str], list[str]] = {}
    for row in kind.rows:
        for what, outcome in row.differs.items():
            end = str(outcome)
            if usual.get(what, end) != end:
                found.setdefault((what, end), []).append(f"`ok.{row.name}`")
    return [f"{what}: {end} ({_list(who)})" for (what, end), who in found.items()]


def _except(exceptions: list[str]) -> list[str]:
    return [f"Exceptions: {'; '.join(exceptions)}."] if exceptions else []


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
