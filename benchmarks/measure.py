"""Interleaved timing: every candidate runs once a round, so a ratio is a fair one.

A machine drifts over seconds, and all candidates of a round drift together. What is
reported is the median over rounds of the ratio within a round, and its quartiles.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Candidate(NamedTuple):
    """Something to time: `run` takes and returns the carry, which it may donate."""

    name: str
    run: Callable[[Any], Any]
    carry: Any
    compile_seconds: float = float("nan")
    temp_bytes: float = float("nan")


class Row(NamedTuple):
    """One line of a table; ratios are to the first candidate."""

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    compile_seconds: float
    temp_bytes: float


def compiled(
    name: str, fn: Callable[[Any], Any], carry: Any, donate: bool = True
) -> Candidate:
    """A candidate from a pure function of its carry, compiled ahead of time."""
    start = time.perf_counter()
    donated = (0,) if donate else ()
    executable = jax.jit(fn, donate_argnums=donated).lower(carry).compile()
    seconds = time.perf_counter() - start
    memory = executable.memory_analysis()
    temp = float("nan") if memory is None else float(memory.temp_size_in_bytes)
    return Candidate(name, executable, carry, seconds, temp)


def repeated(
    name: str, functions: Sequence[Callable[..., Any]], args: tuple[Any, ...]
) -> Candidate:
    """A candidate that calls functions of the same arguments, one after the other."""
    made = [compiled(name, lambda c, f=f: f(*c), args, False) for f in functions]

    def run(args: tuple[Any, ...]) -> tuple[Any, ...]:
        jax.block_until_ready([candidate.run(args) for candidate in made])
        return args

    seconds = sum(candidate.compile_seconds for candidate in made)
    return Candidate(name, run, args, seconds, max(c.temp_bytes for c in made))


def measure(candidates: Sequence[Candidate], rounds: int = 20) -> list[Row]:
    """Times all candidates in turn, `rounds` times, after one round of warming up."""
    return as_rows(candidates, timed(candidates, rounds))


def timed(candidates: Sequence[Candidate], rounds: int) -> np.ndarray:
    """Seconds, a row for each round, a column for each candidate."""
    carries = [candidate.carry for candidate in candidates]
    times = np.zeros((rounds + 1, len(candidates)))
    for i in range(rounds + 1):
        for k in range(len(candidates)):
            j = (i + k) % len(candidates)  # nobody is always first
            start = time.perf_counter()
            carries[j] = jax.block_until_ready(candidates[j].run(carries[j]))
            times[i, j] = time.perf_counter() - start
    return times[1:]


def as_rows(candidates: Sequence[Candidate], times: np.ndarray) -> list[Row]:
    """Medians and quartiles; the first candidate is what ratios are to."""
    ratios = times / times[:, :1]
    rows = []
    for j, candidate in enumerate(candidates):
        low, middle, high = np.quantile(ratios[:, j], (0.25, 0.5, 0.75))
        milliseconds = 1e3 * float(np.median(times[:, j]))
        extra = candidate.compile_seconds, candidate.temp_bytes
        rows.append(Row(candidate.name, milliseconds, middle, low, high, *extra))
    return rows
