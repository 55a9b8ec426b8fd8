"""‖∇Φ‖² of the bilevel solvers on the simulated quadratic problem, in closed form."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

import optkit as ok

from . import f2sa
from .problems import Problem, hypergradient, quadratic, rows, simulated

DIM, NUM_BLOCKS = 100, 16
MARKS = (1_000, 5_000, 10_000, 50_000)


def run(console: Console) -> None:
    """Prints a row for each solver: 1,024 examples, batches of 64, float32."""
    problem = simulated(key=jr.key(0), dim_x=DIM, dim_y=DIM)
    table = Table(title="‖∇Φ‖² after so many steps, 100 + 100 variables")
    for column in ("", *(f"{mark:,}" for mark in MARKS)):
        table.add_column(column, justify="right" if column else "left")
    for name, (solver, batches) in solvers(problem).items():
        table.add_row(name, *map("{:.1e}".format, values(problem, solver, batches)))
    console.print(table)


def values(problem: Problem, solver: ok.BilevelSolver, batches: Any) -> list[float]:
    """‖∇Φ‖² at the marks."""
    state, found = solver.init(jnp.zeros(DIM), jnp.zeros(DIM)), []
    square = jax.jit(lambda x, problem: jnp.sum(hypergradient(problem, x) ** 2))
    for start, mark in zip((0, *MARKS), MARKS, strict=False):
        state, _ = ok.run(solver, state, batches, mark - start, every=1_000)
        found.append(float(square(state.x, problem)))
    return found


def solvers(problem: Problem) -> dict[str, tuple[ok.BilevelSolver, Any]]:
    """Each solver, and its batch for the number of a step."""
    blocks = jax.tree.map(lambda a: a.reshape(NUM_BLOCKS, -1, *a.shape[1:]), problem)

    def draw(k: Array) -> tuple[Array, Any, Array, Any]:
        i, j = jr.randint(jr.fold_in(jr.key(1), k), (2,), 0, NUM_BLOCKS)
        return i, rows(blocks.upper, i), j, rows(blocks.lower, j)

    def plain(k: Array) -> ok.Batches:
        _, upper, _, lower = draw(k)
        return ok.Batches(upper_x=upper, lower_x=lower)

    def terms(k: Array) -> ok.Batches:
        i, upper, j, lower = draw(k)
        return ok.Batches(upper_x=ok.Term(i, upper), lower_x=ok.Term(j, lower))

    def decreasing(c: float) -> Any:
        return optax.sgd(lambda k: c / (k + 1) ** 0.5)

    soba = ok.soba(quadratic, quadratic, outer=decreasing(0.3), inner=decreasing(0.3))
    saba = ok.saba(
        quadratic,
        quadratic,
        num_upper=NUM_BLOCKS,
        num_lower=NUM_BLOCKS,
        outer=optax.sgd(0.3),
        inner=optax.sgd(0.3),
    )

    def four(k: Array) -> ok.Batches:
        return f2sa.draw(blocks, jr.fold_in(jr.key(1), k), inner_steps=1)

    return {
        "SOBA": (soba, plain),
        "SABA": (saba, terms),
        "F2SA": (f2sa.solver(f2sa.schedule()), four),
    }
