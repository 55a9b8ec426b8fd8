"""A step of M-FAC, compared with two bare passes over its window."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp

import optkit as ok
from optkit._vector import combine, project

from .machine import floor
from .measure import Candidate, called, compiled, measure
from .report import Job, Result, at_most

WINDOW = 512
NUM_LEAVES = 4
PASSES, STEP = "two bare passes over the window", "ok.optim.scale_by_mfac"
NARROW = "ok.optim.scale_by_mfac, bfloat16 window"


def run(size: int, rounds: int) -> Result:
    """Measures `size` float32 parameters in four leaves with a window of 512."""
    grads = gradients(size)
    candidates = [
        passes(grads, WINDOW),
        step(grads, WINDOW),
        step(grads, WINDOW, jnp.bfloat16),
        _factor(),
    ]
    timing = measure(candidates, rounds)
    counted = floor(num_bytes=window_bytes(size, WINDOW), flops=4.0 * WINDOW * size)
    table = timing.table(f"A window of {WINDOW}", PASSES, floor=counted)
    window = 4.0 * WINDOW * size
    targets = [
        at_most(
            1.3,
            table.row(STEP),
            "A step of M-FAC (m = 512, d = 1M) takes at most 1.3 × the time of two "
            "bare passes over its window",
            "The table shows the factor of the Gram matrix separately. The rest of the "
            "difference is that the products are computed in blocks of rows.",
        ),
        at_most(
            1.1,
            _peak(table.row(STEP)) / window,
            "M-FAC needs at most 1.1 × the memory of its window",
            "With few parameters, the Gram matrix counts, and so do the blocks of rows "
            "that are cast or shifted.",
        ),
        at_most(
            0.51,
            _peak(table.row(NARROW)) / _peak(table.row(STEP)),
            "A bfloat16 window halves the memory, to within 2 %",
            "With few parameters, the Gram matrix counts, and it stays in float32.",
        ),
    ]
    return Result([table], targets)


def gradients(size: int) -> dict[str, Any]:
    """About `size` float32 entries in four leaves, none of which is empty."""
    leaf = max(size // NUM_LEAVES, 1)
    shape = (max(leaf // 1000, 1), min(leaf, 1000))
    keys = jr.split(jr.key(0), NUM_LEAVES)
    return {str(i): jr.normal(key, shape, jnp.float32) for i, key in enumerate(keys)}


def window_bytes(size: int, window: int) -> float:
    """Reads the window twice and the gradient, writes a row and an update."""
    return 4.0 * size * (2 * window + 3)


def step(grads: Any, window: int, window_dtype: Any = None) -> Candidate:
    """A step that also makes the next gradient: the same size, other values."""
    tx = ok.optim.scale_by_mfac(window, 1e-3, window_dtype=window_dtype)

    def one(carry: Any) -> Any:
        state, grads = carry
        updates, state = tx.update(grads, state)
        grads = jax.tree.map(lambda g, u: -jnp.roll(g, 1) + 1e-3 * u, grads, updates)
        return state, grads

    carry = jax.jit(tx.init)(grads), jax.tree.map(jnp.copy, grads)
    return compiled(NARROW if window_dtype else STEP, one, carry)


def passes(grads: Any, window: int) -> Candidate:
    """G g, then Gᵀ (G g): the data that a step has to read."""

    def one(carry: Any) -> Any:
        rows, grads = carry
        mixed = combine(project(rows, grads), rows)
        return rows, jax.tree.map(lambda g, u: -jnp.roll(g, 1) + 1e-3 * u, grads, mixed)

    rows = jax.tree.map(lambda g: jnp.zeros((window, *g.shape), g.dtype), grads)
    carry = rows, jax.tree.map(jnp.copy, grads)
    return compiled(PASSES, one, carry, "floor")


def _factor() -> Candidate:
    """The work of a step on its Gram matrix."""
    gram = jnp.eye(WINDOW, dtype=jnp.float32) + 1e-3

    def solve(gram: Any) -> Any:
        lower = jnp.linalg.cholesky(gram)
        return jsp.linalg.cho_solve((lower, True), gram[0])

    return called("factor of the Gram matrix alone", solve, (gram,))[0]


def _peak(row: Any) -> float:
    return row.memory.peak if row.memory else math.nan


JOB = Job(
    title="A step of M-FAC",
    run=run,
    size=1_000_000,
    unit="float32 parameters in four leaves",
    reading=(
        "A step has to read the window twice: once for the new row of the Gram matrix, "
        "and once for the combination of its rows. The rest is a Cholesky "
        "factorisation of a 512 x 512 matrix. A bfloat16 window halves the memory. "
        "CPUs cannot multiply these numbers directly, so blocks of the window are cast "
        "and the step is slower."
    ),
)
