"""Interleaved timing: every candidate runs once a round, so a ratio is a fair one.

A machine drifts over seconds, and all candidates of a round drift together. What is
reported is the median over rounds of the ratio within a round, and its quartiles.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .report import NAN, Floor, Memory, Role, Row, Table

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What seconds are of: `cpu` counts this process alone, on a machine that is shared."""


class Candidate(NamedTuple):
    """Something to time: `run` takes and returns the carry, which it may donate."""

    name: str
    run: Callable[[Any], Any]
    carry: Any
    role: Role = "ours"
    compile_seconds: float = NAN
    memory: Memory | None = None
    trace_seconds: float = NAN  # the part of the former before the compiler
    num_instructions: float = NAN  # of what it compiled to


class Timing(NamedTuple):
    """Seconds of all candidates: a row for each round, a column for each of them."""

    candidates: Sequence[Candidate]
    times: np.ndarray

    def table(
        self,
        title: str,
        reference: str,
        names: Sequence[str] | None = None,
        floor: Floor | None = None,
        extras: dict[str, dict[str, float]] | None = None,
    ) -> Table:
        """Medians and quartiles of some candidates, and their ratios to one of them.

        Args:
            title: what is timed.
            reference: the name of the candidate that ratios are to.
            names: of the candidates to show, in this order; None is all of them.
            floor: what the machine would need for the bytes and FLOPs alone.
            extras: further columns, by the name of a candidate.

        Returns:
            A table with a row for each of the names that there is.
        """
        columns = {c.name: j for j, c in enumerate(self.candidates)}
        base = self.times[:, columns[reference]]
        rows = [
            self._row(columns[name], base, (extras or {}).get(name, {}))
            for name in names or columns
            if name in columns
        ]
        return Table(title, reference, rows, floor)

    def mean_of(self, count: int) -> "Timing":
        """Means over so many rounds at a time: for steps of unequal cost."""
        blocks = self.times.reshape(-1, count, self.times.shape[1])
        return Timing(self.candidates, blocks.mean(axis=1))

    def _row(self, j: int, base: np.ndarray, extra: dict[str, float]) -> Row:
        candidate, seconds = self.candidates[j], self.times[:, j]
        low, middle, high = np.quantile(seconds / base, (0.25, 0.5, 0.75))
        return Row(
            candidate.name,
            candidate.role,
            1e3 * float(np.median(seconds)),
            float(middle),
            float(low),
            float(high),
            candidate.compile_seconds,
            candidate.memory,
            extra,
        )


def compiled(
    name: str,
    fn: Callable[[Any], Any],
    carry: Any,
    role: Role = "ours",
    *,
    donate: bool = True,
) -> Candidate:
    """A candidate from a pure function of its carry, compiled ahead of time."""
    now = CLOCKS[clock()]
    start = now()
    donated = (0,) if donate else ()
    lowered = jax.jit(fn, donate_argnums=donated).lower(carry)
    traced = now() - start
    executable = lowered.compile()
    seconds = now() - start
    size = float((executable.as_text() or "").count(" = "))
    found = seconds, memory_of(executable), traced, size
    return Candidate(name, executable, carry, role, *found)


def memory_of(executable: Any) -> Memory | None:
    """What the compiler says that an executable needs, where it says so."""
    found = executable.memory_analysis()
    if found is None:
        return None
    return Memory(
        float(found.argument_size_in_bytes),
        float(found.output_size_in_bytes),
        float(found.alias_size_in_bytes),
        float(found.temp_size_in_bytes),
    )


def called(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], role: Role = "ours"
) -> tuple[Candidate, Callable[..., Any]]:
    """A candidate that calls a function of the same arguments, and the function."""
    made = compiled(name, lambda args: fn(*args), args, role, donate=False)

    def run(args: tuple[Any, ...]) -> tuple[Any, ...]:
        jax.block_until_ready(made.run(args))
        return args

    return made._replace(run=run), lambda *args: made.run(args)


def in_turn(
    name: str,
    functions: Sequence[Callable[..., Any]],
    args: tuple[Any, ...],
    role: Role = "ours",
) -> Candidate:
    """A candidate that calls functions of the same arguments, one after the other."""
    made = [called(name, fn, args)[0] for fn in functions]

    def run(args: tuple[Any, ...]) -> tuple[Any, ...]:
        for candidate in made:
            candidate.run(args)
        return args

    seconds = sum(candidate.compile_seconds for candidate in made)
    memories = [candidate.memory for candidate in made if candidate.memory]
    largest = max(memories, key=lambda memory: memory.peak, default=None)
    return Candidate(name, run, args, role, seconds, largest)


def measure(candidates: Sequence[Candidate], rounds: int) -> Timing:
    """Times all candidates in turn, `rounds` times, after one round of warming up.

    Each round is in an order of its own: what follows a long run finds caches cold and
    processors warm, and no candidate shall always be the one.
    """
    now = CLOCKS[clock()]
    carries = [candidate.carry for candidate in candidates]
    times = np.zeros((rounds + 1, len(candidates)))
    orders = np.random.default_rng(0)
    for i in range(rounds + 1):
        for j in orders.permutation(len(candidates)):
            start = now()
            carries[j] = jax.block_until_ready(candidates[j].run(carries[j]))
            times[i, j] = now() - start
    return Timing(candidates, times[1:])


_chosen = ["wall"]


def clock() -> str:
    """The name of the clock that `measure` reads."""
    return _chosen[0]


def choose_clock(name: str) -> None:
    """Sets what `measure` reads from here on: a name in `CLOCKS`."""
    _chosen[0] = name
