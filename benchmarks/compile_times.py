"""How long it takes to trace and compile a step.

Every round compiles each step again, after clearing all of JAX's caches. Compile times
hardly depend on the sizes, so the sizes are small.
"""

from collections.abc import Callable

import jax
import numpy as np
import optax

import optkit as ok

from . import adahessian, adan, bilevel, f2sa, implicit
from .measure import Candidate, Timing
from .network import make_network
from .report import NAN, Job, Result, Table, at_most

SIZE = 10_000
Maker = Callable[[], Candidate]


def run(size: int, rounds: int) -> Result:
    """Measures each kind of step; `size` is that of the hypergradient."""
    tables = []
    for title, makers in _steps().items():
        timing = _compile(makers, rounds)
        tables.append(_table(title, timing.candidates[0].name, timing))
    with jax.enable_x64(True):
        problem = implicit.Problem(max(size // 10, 1))
        made = {
            name: lambda item=(name, *maker): problem.candidate(*item)
            for name, maker in implicit.makers(problem).items()
        }
        timing = _compile(made, 2 * rounds)  # it has targets
    for reference in (implicit.BY_HAND, implicit.JAXOPT, implicit.JAXOPT_CG):
        if reference in made:
            title = f"Hypergradient, against {reference}"
            tables.append(_table(title, reference, timing))
    found = {table.reference: table.row(implicit.OURS) for table in tables}
    cause = (
        "There is more to compile: a solve with forward and reverse derivatives of its "
        "own, the true residual, and the checks that report a failure. The columns for "
        "tracing and instructions show how much."
    )
    targets = [
        at_most(
            1.0,
            found.get(reference, NAN),
            f"A hypergradient by `ok.implicit_minimum` compiles at least as fast as "
            f"with {reference}",
            cause,
        )
        for reference in (implicit.JAXOPT, implicit.JAXOPT_CG)
    ]
    return Result(tables, targets)


def _steps() -> dict[str, dict[str, Maker]]:
    grads = adan.gradients(SIZE)
    network = make_network(SIZE)
    blocks = bilevel.examples(bilevel.VECTORS, SIZE // 100)
    return {
        "Adan": {
            "optax.adan": lambda: adan.step(
                "optax.adan", optax.adan(1e-3), grads, "peer"
            ),
            "ok.optim.adan": lambda: adan.step(
                "ok.optim.adan", ok.optim.adan(1e-3), grads
            ),
        },
        "AdaHessian": {
            "optax.contrib.sophia": lambda: adahessian.optax_sophia(1, *network),
            adahessian.ADAHESSIAN: lambda: adahessian.with_diag(
                adahessian.ADAHESSIAN, ok.optim.adahessian(0.1), *network
            ),
        },
        "SABA": dict(zip(_SABA, bilevel.makers(blocks, 128)[2:], strict=True)),
        "F2SA": dict(zip(_F2SA, f2sa.makers(blocks, 64), strict=True)),
    }


_SABA = bilevel.SABA_SCRIPT, bilevel.SABA
_F2SA = f2sa.SCRIPT, f2sa.OURS


def _compile(makers: dict[str, Maker], rounds: int) -> Timing:
    made: list[Candidate] = []
    times = np.zeros((rounds, len(makers)))
    for i in range(rounds):
        made = []
        for j, make in enumerate(makers.values()):
            jax.clear_caches()
            made.append(make())
            times[i, j] = made[j].compile_seconds
    return Timing(made, times)


def _table(title: str, reference: str, timing: Timing) -> Table:
    """Adds two columns from the last round: the tracing time and the program size."""
    extras = {
        c.name: {
            "tracing ms": 1e3 * c.trace_seconds,
            "instructions": c.num_instructions,
        }
        for c in timing.candidates
    }
    table = timing.table(title, reference, extras=extras)
    bare = [row._replace(compile_seconds=NAN, memory=None) for row in table.rows]
    return table._replace(rows=bare)


JOB = Job(
    title="Compile times",
    run=run,
    size=640,
    unit="float64 weights of the hypergradient",
    rounds=2,
    reading=(
        "A program traces and compiles a step once for each shape; the column `ms` is "
        "the time of both together. With JAX's persistent compilation cache, the next "
        "run of the program does not compile at all."
    ),
)
