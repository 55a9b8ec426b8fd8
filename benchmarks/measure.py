"""Interleaved timing: every candidate runs once per round, which makes ratios fair.

The speed of a machine drifts over seconds, and it drifts for all candidates of a round
together. The reported ratio is the median over rounds of the ratio within a round, with
its quartiles.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .report import NAN, Floor, Memory, Role, Row, Table

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""The clocks: `cpu` counts only this process, which helps on a busy machine."""


class Candidate(NamedTuple):
    """Something to time: `run` maps a carry to the next one, and may donate it."""

    name: str
    run: Callable[[Any], Any]
    carry: Any
    role: Role = "ours"
    compile_seconds: float = NAN
    memory: Memory | None = None
    trace_seconds: float = NAN  # the part of compile_seconds before the compiler
    num_instructions: float = NAN  # of the compiled program


class Timing(NamedTuple):
    """Seconds of all candidates: one row per round, one column per candidate."""

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
        """Tabulates medians and quartiles, and the ratios to a reference.

        Args:
            title: The title of the table.
            reference: The name of the candidate in the denominator of the ratios.
            names: The candidates to show, in this order. Default: all.
            floor: The counted work, if the table has a floor.
            extras: Further columns, by the name of the candidate.

        Returns:
            A table with one row for each name that was measured.
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
        """Means over groups of `count` rounds, for steps of unequal cost."""
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
    """A candidate from a pure function of the carry, compiled ahead of time."""
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
    """The memory of an executable, if the compiler reports it."""
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
    """A candidate that calls a function with fixed arguments, and that function."""
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
    """A candidate that calls several functions with the same arguments, in turn."""
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
    """Times all candidates in turn, `rounds` times, after one warm-up round.

    The order is random in each round: a candidate that follows a long run finds cold
    caches and a hot processor, and this must not always be the same one.
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
    """The name of the clock that `measure` uses."""
    return _chosen[0]


def choose_clock(name: str) -> None:
    """Sets the clock that `measure` uses, by its name in `CLOCKS`."""
    _chosen[0] = name
