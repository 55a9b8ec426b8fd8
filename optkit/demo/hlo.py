"""What devices send each other, read from the program that XLA compiled.

`compiled.as_text()` lists the instructions of each computation; loops and branches name
the computations that they run. A walk from the entry finds every collective operation,
how often it runs, and how many bytes it produces.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_OPERATIONS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_OPERATIONS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"\b(body|condition|to_apply|calls|branch_computations|true_computation"
    r"|false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BRANCHES = {"branch_computations", "true_computation", "false_computation"}


class Collective(NamedTuple):
    """One operation in which devices exchange arrays."""

    operation: str  # as XLA calls it, such as "all-reduce"
    shapes: tuple[str, ...]  # of the results on one device, such as "f32[16,24]"
    num_bytes: int  # of all results together
    times: int  # how often it runs in one run of the program
    varies: bool  # in a branch, or in a loop of unknown length (counted once)


def collectives(text: str | None) -> list[Collective]:
    """Lists the collective operations of a compiled program.

    Args:
        text: From `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
        One item for each instruction and each place from which it is called.

    Raises:
        ValueError: If the text has no entry computation.
    """
    computations, entry = _split(text or "")
    if entry is None:
        raise ValueError(
            "`collectives` needs the text of a compiled program, got one without an "
            "ENTRY computation. Pass `jax.jit(f).lower(...).compile().as_text()`."
        )
    return list(_walk(computations, entry, 1, False))


def total_bytes(found: list[Collective]) -> dict[str, int]:
    """Bytes by operation in one run of the program, without those that vary."""
    totals: dict[str, int] = {}
    for each in found:
        if not each.varies:
            size = each.num_bytes * each.times
            totals[each.operation] = totals.get(each.operation, 0) + size
    return totals


def _split(text: str) -> tuple[dict[str, list[str]], str | None]:
    """The lines of each computation, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = None, []
    for line in text.splitlines():
        if not line.startswith(" ") and (found := _COMPUTATION.match(line)):
            lines = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        else:
            lines.append(line)
    return computations, entry


def _walk(
    computations: dict[str, list[str]], name: str, times: int, varies: bool
) -> Iterator[Collective]:
    for line in computations.get(name, ()):
        if found := _COLLECTIVE.search(line):
            yield _read(found, times, varies)
        known = _TRIPS.search(line)
        trips = int(known[1]) if known else 1
        for kind, called in _CALLED.findall(line):
            is_open = kind in _BRANCHES or (kind == "body" and not known)
            for inner in called.strip("{}").split(","):
                inner = inner.strip().lstrip("%")
                yield from _walk(computations, inner, times * trips, varies or is_open)


def _read(found: re.Match[str], times: int, varies: bool) -> Collective:
    arrays = list(_ARRAY.finditer(found[1]))
    if found[3] and found[2] != "all-reduce":  # asynchronous: the operands come first
        arrays = arrays[len(arrays) // 2 :]
    shapes = tuple(array[0] for array in arrays)
    return Collective(found[2], shapes, sum(map(_num_bytes, arrays)), times, varies)


def _num_bytes(array: re.Match[str]) -> int:
    """Bytes of one array, from its type and shape."""
    entries = math.prod(int(n) for n in array[3].split(",") if n)
    return -(-entries * int(array[2] or 8) // 8)
