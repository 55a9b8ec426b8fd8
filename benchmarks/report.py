"""The results of a job: tables, targets and plots, and how they become JSON."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

NAN = float("nan")
Role: TypeAlias = Literal["ours", "peer", "floor"]


class Memory(NamedTuple):
    """Bytes that an executable needs, as reported by the compiler."""

    arguments: float
    outputs: float
    aliased: float  # outputs that reuse the memory of arguments
    temporaries: float

    @property
    def peak(self) -> float:
        """Everything that is held at the same time."""
        return self.arguments + self.outputs - self.aliased + self.temporaries


class Row(NamedTuple):
    """One line of a table; NaN stands for what was not measured."""

    name: str
    role: Role
    milliseconds: float = NAN
    ratio: float = NAN
    low: float = NAN
    high: float = NAN
    compile_seconds: float = NAN
    memory: Memory | None = None
    extra: dict[str, float] = {}  # noqa: RUF012  # never mutated


class Floor(NamedTuple):
    """Bytes and FLOPs, counted in code, and the rates of this machine."""

    num_bytes: float
    flops: float
    bytes_per_second: float  # of a copy; counts bytes read and written
    flops_per_second: float  # of a float32 matrix product

    @property
    def milliseconds(self) -> float:
        """The longer of the two times."""
        moving = self.num_bytes / self.bytes_per_second
        return 1e3 * max(moving, self.flops / self.flops_per_second)


class Table(NamedTuple):
    """Rows, with ratios to the row named `reference`."""

    title: str
    reference: str
    rows: Sequence[Row]
    floor: Floor | None = None

    def row(self, name: str) -> Row:
        """The row with that name, or a row of NaN if it was skipped."""
        return next((row for row in self.rows if row.name == name), Row(name, "peer"))


class Target(NamedTuple):
    """A promise and the outcome: it is met if `measured` <= `limit`.

    A missed ratio whose lower quartile meets the limit is within the spread.
    """

    sentence: str
    limit: float
    measured: float
    low: float = NAN
    high: float = NAN
    cause: str = ""  # the reason if it is missed

    @property
    def verdict(self) -> str:
        """`met`, `missed`, `missed, within the spread`, or `not measured`."""
        if math.isnan(self.measured):
            return "not measured"
        if self.measured <= self.limit:
            return "met"
        return "missed, within the spread" if self.low <= self.limit else "missed"


class Line(NamedTuple):
    """One line of a plot."""

    name: str
    role: Role
    x: Sequence[float]
    y: Sequence[float]


class Plot(NamedTuple):
    """Lines on two axes."""

    name: str  # the name of the file
    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    x_log: bool = True
    y_log: bool = True


class Result(NamedTuple):
    """The results of a job."""

    tables: Sequence[Table] = ()
    targets: Sequence[Target] = ()
    plots: Sequence[Plot] = ()
    remarks: Sequence[str] = ()  # missing libraries and other notes on this run


class Job(NamedTuple):
    """Something to measure, and how to read the result."""

    title: str
    run: Callable[[int, int], Result]  # of the size and the number of rounds
    size: int
    unit: str  # what the size counts
    reading: str  # what the numbers mean; contains no numbers of a run
    rounds: int = 12
    is_long: bool = False  # only runs on request


class Done(NamedTuple):
    """A job that has run."""

    job: str
    size: int
    seconds: float
    result: Result


class Session(NamedTuple):
    """Everything from one call of the command."""

    machine: str
    clock: str
    done: Sequence[Done]
    seconds: float


def at_most(
    limit: float, measured: Row | float, sentence: str, cause: str = ""
) -> Target:
    """A target for the ratio of a row (with its quartiles) or for a number."""
    if isinstance(measured, Row):
        found = measured.ratio, measured.low, measured.high
        return Target(sentence, limit, *found, cause=cause)
    return Target(sentence, limit, float(measured), cause=cause)


def save(session: Session, path: Path) -> None:
    """Writes JSON; NaN becomes null."""
    path.write_text(json.dumps(_plain(session), indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> Session:
    """Reads what `save` wrote."""
    read = json.loads(path.read_text(encoding="utf-8"))
    return Session(**(read | {"done": [_done(item) for item in read["done"]]}))


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | bool | int) or value is None:
        return value
    return float(value) if math.isfinite(value) else None


def _done(read: dict[str, Any]) -> Done:
    given = read["result"]
    result = Result(
        [_table(table) for table in given["tables"]],
        [
            Target(**_numbers(target, "sentence", "cause"))
            for target in given["targets"]
        ],
        [_plot(plot) for plot in given["plots"]],
        given["remarks"],
    )
    return Done(read["job"], read["size"], read["seconds"], result)


def _table(read: dict[str, Any]) -> Table:
    floor = None if read["floor"] is None else Floor(**_numbers(read["floor"]))
    rows = [_row(row) for row in read["rows"]]
    return Table(**(read | {"rows": rows, "floor": floor}))


def _row(read: dict[str, Any]) -> Row:
    row = _numbers(read, "name", "role", "memory", "extra")
    memory = None if row["memory"] is None else Memory(**_numbers(row["memory"]))
    return Row(**(row | {"memory": memory, "extra": _numbers(row["extra"])}))


def _plot(read: dict[str, Any]) -> Plot:
    lines = [
        Line(line["name"], line["role"], *map(_floats, (line["x"], line["y"])))
        for line in read["lines"]
    ]
    return Plot(**{**read, "lines": lines})


def _numbers(read: dict[str, Any], *others: str) -> dict[str, Any]:
    """Replaces null by NaN, except for the keys `others`."""
    return {
        name: NAN if value is None and name not in others else value
        for name, value in read.items()
    }


def _floats(values: Sequence[Any]) -> list[float]:
    return [NAN if value is None else float(value) for value in values]
