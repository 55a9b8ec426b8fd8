"""Formats tables and targets, for both the terminal and the page."""

import math
from collections.abc import Sequence

from rich.table import Table as Grid

from .report import Row, Session, Table, Target


def as_words(table: Table) -> tuple[list[str], list[list[str]]]:
    """The headings and the cells of each row, without empty columns."""
    columns = {
        "": [row.name for row in table.rows],
        "ms": [_milliseconds(row.milliseconds) for row in table.rows],
        f"ratio to {table.reference}": [_ratio(row) for row in table.rows],
        "× floor": [_floors(table, row) for row in table.rows],
        "compile s": [_number(row.compile_seconds, ".2f") for row in table.rows],
        "peak MB": [_megabytes(row.memory and row.memory.peak) for row in table.rows],
        "temporaries MB": [
            _megabytes(row.memory and row.memory.temporaries) for row in table.rows
        ],
    }
    for name in dict.fromkeys(name for row in table.rows for name in row.extra):
        values = [row.extra.get(name, math.nan) for row in table.rows]
        columns[name] = [_short(value) for value in values]
    kept = {name: words for name, words in columns.items() if any(words)}
    return list(kept), [list(words) for words in zip(*kept.values(), strict=True)]


def as_grid(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Grid:
    """A table for the terminal."""
    grid = Grid(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        grid.add_column(heading, justify="right" if i else "left")
    for row in rows:
        grid.add_row(*row)
    return grid


def floor_words(table: Table) -> str:
    """One sentence on the floor and the rates; empty if the table has no floor."""
    floor = table.floor
    if floor is None:
        return ""
    work = (
        [f"{floor.num_bytes / 1e6:,.0f} MB of memory traffic"]
        if floor.num_bytes
        else []
    )
    work += [f"{floor.flops / 1e9:,.1f} GFLOP"] if floor.flops else []
    return (
        f"Floor: {' and '.join(work)} take {_milliseconds(floor.milliseconds)} ms; "
        f"this machine copies {floor.bytes_per_second / 1e9:.1f} GB/s and multiplies "
        f"float32 matrices at {floor.flops_per_second / 1e9:,.0f} GFLOP/s."
    )


def target_words(target: Target) -> list[str]:
    """The sentence, limit, measured value, quartiles and verdict."""
    spread = ""
    if math.isfinite(target.low):
        spread = f"{_short(target.low)} to {_short(target.high)}"
    measured = _short(target.measured)
    return [target.sentence, _short(target.limit), measured, spread, target.verdict]


TARGET_HEADINGS = ["target", "at most", "measured", "quartiles", "verdict"]


def summary(session: Session) -> str:
    """How many targets are met, missed and not measured, and the total time."""
    verdicts = [t.verdict for done in session.done for t in done.result.targets]
    counts = [f"{verdicts.count(word)} {word}" for word in _VERDICTS]
    return f"Targets: {'; '.join(counts)}. Total time: {session.seconds:.0f} s."


_VERDICTS = ("met", "missed", "missed, within the spread", "not measured")


def _ratio(row: Row) -> str:
    if math.isnan(row.ratio):
        return ""
    if row.low == row.high == row.ratio == 1:
        return "1"
    return f"{_short(row.ratio)} ({_short(row.low)} to {_short(row.high)})"


def _floors(table: Table, row: Row) -> str:
    if table.floor is None:
        return ""
    return _number(row.milliseconds / table.floor.milliseconds, ".1f")


def _milliseconds(value: float) -> str:
    return _number(value, ".3f" if value < 1 else ".1f" if value < 1000 else ",.0f")


def _megabytes(value: float | None) -> str:
    return "" if value is None else _number(value / 1e6, ".1f")


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)


def _short(value: float) -> str:
    """Three digits, with an exponent only if needed."""
    if math.isnan(value):
        return ""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if 1e-2 <= abs(value) < 1e4:
        return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
    return f"{value:.1e}"
