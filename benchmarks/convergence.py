"""Convergence of bilevel solvers: ‖∇Φ‖² against steps and seconds.

The problem is the simulated quadratic one, whose ‖∇Φ‖² is known in closed form. A
solver and the published script have the same step sizes and see the same minibatches,
so their iterates agree to rounding and their seconds can be compared. They run in turn,
a thousand steps at a time.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax import lax
from jaxtyping import Array

from . import bilevel, f2sa
from .measure import CLOCKS, Candidate, Timing, clock, compiled
from .problems import Problem, hypergradient, simulated
from .report import NAN, Job, Line, Plot, Result, Role, Table, at_most

NUM_STEPS, CHUNK = 50_000, 1_000
MARKS = (1_000, 10_000, 50_000)
GOAL = 1e-2
PAIRS = {
    "SOBA": (bilevel.SOBA_SCRIPT, bilevel.SOBA),
    "SABA": (bilevel.SABA_SCRIPT, bilevel.SABA),
    "F2SA": (f2sa.SCRIPT, f2sa.OURS),
}


class Contender(NamedTuple):
    """A step (of a state, a step count and the minibatches) and an initial state."""

    step: Callable[[Any, Array, Problem], Any]
    start: Any
    x_of: Callable[[Any], Array]
    role: Role


class Path(NamedTuple):
    """The history of a contender: seconds of every chunk, and ‖∇Φ‖² after it."""

    candidate: Candidate
    seconds: list[float]
    squares: list[float]


def run(size: int, rounds: int) -> Result:
    """Compares each solver with its script: 1,024 examples, batches of 64, float32."""
    del rounds
    problem = bilevel.in_float32(simulated(key=jr.key(0), dim_x=size, dim_y=size))
    blocks = bilevel.in_blocks(problem)
    paths = _paths(problem, blocks, _contenders(size, blocks))
    tables = [_table(name, pair, paths) for name, pair in PAIRS.items()]
    lines = [
        Line(name, path.candidate.role, np.cumsum(path.seconds).tolist(), path.squares)
        for name, path in paths.items()
    ]
    plot = Plot("bilevel", "Bilevel solvers", "seconds", "‖∇Φ‖²", lines)
    falls = [paths[f2sa.OURS].squares[mark // CHUNK - 1] for mark in MARKS]
    targets = [
        at_most(
            1.0,
            max(after / before for before, after in itertools.pairwise(falls)),
            "‖∇Φ‖² of F2SA falls from 1,000 to 10,000 to 50,000 steps (larger ratio)",
        ),
        at_most(
            1e-10,
            paths[bilevel.SABA].squares[-1],
            "‖∇Φ‖² of SABA ends below 1e-10, where SOBA stalls",
        ),
    ]
    return Result(tables, targets, [plot])


def _contenders(size: int, blocks: Problem) -> dict[str, Contender]:
    zeros = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)
    contenders = {}
    pairs = {
        "SOBA": (bilevel.soba, bilevel.soba_script, bilevel.soba_start),
        "SABA": (bilevel.saba, bilevel.saba_script, bilevel.saba_start),
    }
    for name, (make, script, start) in pairs.items():
        flat, ours = PAIRS[name]
        contenders[flat] = Contender(_on_pairs(script), start(*zeros), _first, "peer")
        begun = make(blocks).init(*zeros)
        contenders[ours] = Contender(
            _on_pairs(bilevel.solver_step(make)), begun, _x, "ours"
        )
    flat, given = f2sa.script_start(*zeros), f2sa.schedule()
    contenders[f2sa.SCRIPT] = Contender(_on_four(f2sa.script), flat, _first, "peer")
    begun = f2sa.solver(given, blocks).init(*zeros)
    contenders[f2sa.OURS] = Contender(
        _on_four(f2sa.solver_step(given)), begun, _x, "ours"
    )
    return contenders


def _on_pairs(step: Any) -> Callable[[Any, Array, Problem], Any]:
    """Draws a minibatch for each level."""

    def on_step(state: Any, k: Array, blocks: Problem) -> Any:
        i, j = jr.randint(jr.fold_in(jr.key(1), k), (2,), 0, bilevel.NUM_BLOCKS)
        return step(state, blocks, i, j)

    return on_step


def _on_four(step: Any) -> Callable[[Any, Array, Problem], Any]:
    """Draws minibatches for four gradients, with one inner step."""

    def on_step(state: Any, k: Array, blocks: Problem) -> Any:
        i, j = jr.randint(jr.fold_in(jr.key(1), k), (2, 2), 0, bilevel.NUM_BLOCKS)
        return step(state, blocks, f2sa.batches(i, j))

    return on_step


def _first(state: Any) -> Array:
    return state[0]


def _x(state: Any) -> Array:
    return state.x


def _paths(
    problem: Problem, blocks: Problem, contenders: dict[str, Contender]
) -> dict[str, Path]:
    square = jax.jit(lambda x: jnp.sum(hypergradient(problem, x) ** 2))
    paths, carries = {}, {}
    for name, contender in contenders.items():
        carries[name] = contender.start, jnp.zeros([], jnp.int32), blocks
        chunk = _chunk(contender.step)
        made = compiled(name, chunk, carries[name], contender.role, donate=False)
        paths[name] = Path(made, [], [])
    now = CLOCKS[clock()]
    for _ in range(NUM_STEPS // CHUNK):
        for name, path in paths.items():
            start = now()
            carries[name] = jax.block_until_ready(path.candidate.run(carries[name]))
            path.seconds.append(now() - start)
            x = contenders[name].x_of(carries[name][0])
            path.squares.append(float(square(x)))
    return paths


def _chunk(step: Callable[[Any, Array, Problem], Any]) -> Callable[[Any], Any]:
    def chunk(carry: Any) -> Any:
        state, k, blocks = carry

        def one(state: Any, k: Array) -> Any:
            return step(state, k, blocks), None

        state, _ = lax.scan(one, state, k + jnp.arange(CHUNK, dtype=jnp.int32))
        return state, k + CHUNK, blocks

    return chunk


def _table(title: str, pair: tuple[str, str], paths: dict[str, Path]) -> Table:
    both = [paths[name] for name in pair]
    times = np.array([path.seconds for path in both]).T
    extras = {name: _found(paths[name]) for name in pair}
    timing = Timing([path.candidate for path in both], times)
    return timing.table(f"{title}, {CHUNK:,} steps", pair[0], extras=extras)


def _found(path: Path) -> dict[str, float]:
    """When the goal was reached, and ‖∇Φ‖² after some numbers of steps."""
    reached = [k for k, square in enumerate(path.squares) if square < GOAL]
    chunks = reached[0] + 1 if reached else None
    found = {
        f"steps to {GOAL:.0e}": float(chunks * CHUNK) if chunks else NAN,
        f"seconds to {GOAL:.0e}": sum(path.seconds[:chunks]) if chunks else NAN,
    }
    for mark in MARKS:
        found[f"after {mark:,}"] = path.squares[mark // CHUNK - 1]
    return found


JOB = Job(
    title="Convergence of bilevel solvers",
    run=run,
    size=100,
    unit="entries each in x and y, 1,024 examples, batches of 64",
    reading=(
        "The iterates of a solver and its script are the same, so the ratio of their "
        "times is that of a single step. The last three columns are ‖∇Φ‖² after that "
        "many steps. SOBA and F2SA have noisy gradients and decreasing step sizes, so "
        "they become slow. SABA remembers a gradient for each minibatch: its noise "
        "vanishes, its step sizes are constant, and it converges to the rounding of "
        "float32."
    ),
)
