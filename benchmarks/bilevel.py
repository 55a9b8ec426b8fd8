"""A step of SOBA and of SABA beside the same step as published scripts write it.

Those are for two flat arrays, and neither report nor guard anything: here they stand
for the floor. Both sides draw the same minibatches, 100 steps in one compiled loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array

import optkit as ok

from .measure import Candidate, compiled, measure
from .problems import Problem, Quadratics, quadratic, rows, simulated
from .report import Job, Result, Role, at_most

NUM_BLOCKS, STEPS = 16, 100
RHO, GAMMA = 0.3, 0.3
SOBA, SOBA_SCRIPT = "ok.soba", "SOBA, flat script"
SABA, SABA_SCRIPT = "ok.saba", "SABA, flat script"


def run(size: int, rounds: int) -> Result:
    """A table each for SOBA and SABA: x and y of `size` entries, batches of 64."""
    candidates = [make() for make in makers(size)]
    multiples = {
        candidate.name: {"state / (x, y)": state_multiple(candidate.carry[0], size)}
        for candidate in candidates
    }
    timing = measure(candidates, rounds)
    tables = [
        timing.table(f"{STEPS} steps", pair[0], pair, extras=multiples)
        for pair in ([SOBA_SCRIPT, SOBA], [SABA_SCRIPT, SABA])
    ]
    sentence = "A step of `{}` takes at most what the published script's takes"
    targets = [
        at_most(1.0, table.row(name), sentence.format(name), NOISE)
        for table, name in zip(tables, (SOBA, SABA), strict=True)
    ]
    return Result(tables, targets)


def makers(size: int) -> list[Callable[[], Candidate]]:
    """Script and solver, of SOBA and then of SABA, not yet compiled."""
    blocks = single(in_blocks(simulated(key=jr.key(0), dim_x=size, dim_y=size)))
    zeros = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)

    def script(name: str, step: Any, start: Any) -> Callable[[], Candidate]:
        return lambda: _candidate(name, step, start(*zeros), blocks, "peer")

    def solver(name: str, make: Any) -> Callable[[], Candidate]:
        made = make()
        return lambda: _candidate(name, ours(made), made.init(*zeros), blocks)

    return [
        script(SOBA_SCRIPT, soba_script, soba_start),
        solver(SOBA, soba),
        script(SABA_SCRIPT, saba_script, saba_start),
        solver(SABA, saba),
    ]


def in_blocks(problem: Problem) -> Problem:
    """The examples in minibatches."""
    return jax.tree.map(lambda a: a.reshape(NUM_BLOCKS, -1, *a.shape[1:]), problem)


def single(tree: Any) -> Any:
    """The same in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def soba() -> ok.BilevelSolver:
    """SOBA with decreasing steps."""

    def decreasing(c: float) -> optax.GradientTransformation:
        return optax.sgd(lambda k: c / (k + 1) ** 0.5)

    return ok.soba(quadratic, quadratic, outer=decreasing(GAMMA), inner=decreasing(RHO))


def saba() -> ok.BilevelSolver:
    """SABA with constant steps."""
    return ok.saba(
        quadratic,
        quadratic,
        num_upper=NUM_BLOCKS,
        num_lower=NUM_BLOCKS,
        outer=optax.sgd(GAMMA),
        inner=optax.sgd(RHO),
    )


def state_multiple(state: Any, size: int) -> float:
    """Bytes of a state over those of x and y, of `size` float32 entries each."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / (2 * 4 * size)


def _candidate(
    name: str, step: Any, carry: Any, blocks: Any, role: Role = "ours"
) -> Candidate:
    """Many steps, of which each draws a minibatch for either level."""

    def steps(carry: Any) -> Any:
        def one(carry: Any, key: Array) -> Any:
            i, j = jr.randint(key, (2,), 0, NUM_BLOCKS)
            return step(carry, blocks, i, j), None

        state, blocks, key = carry
        key, own = jr.split(key)
        state, _ = lax.scan(one, state, jr.split(own, STEPS))
        return state, blocks, key

    return compiled(name, steps, (carry, blocks, jr.key(1)), role, donate=False)


def ours(solver: ok.BilevelSolver) -> Any:
    """A step of a solver on the blocks i and j."""

    def step(state: Any, blocks: Any, i: Array, j: Array) -> Any:
        upper, lower = rows(blocks.upper, i), rows(blocks.lower, j)
        batch = ok.Batches(upper_x=ok.Term(i, upper), lower_x=ok.Term(j, lower))
        if not isinstance(state, ok.SabaState):
            batch = ok.Batches(upper_x=upper, lower_x=lower)
        return solver.step(state, batch)[0]

    return step


def _slopes(
    x: Array, y: Array, v: Array, upper: Quadratics, lower: Quadratics
) -> tuple[Array, ...]:
    """∇_y g, H v, J v, ∇_x F, ∇_y F."""

    def slope(y: Array, x: Array) -> Array:
        return jax.grad(quadratic, argnums=1)(x, y, lower)

    g_y, pull = jax.vjp(slope, y, x)
    F_x, F_y = jax.grad(quadratic, argnums=(0, 1))(x, y, upper)
    return g_y, *pull(v), F_x, F_y


def soba_start(x: Array, y: Array) -> Any:
    """The state of the script: x, y, v and the count of steps."""
    return x, y, y, jnp.zeros((), jnp.float32)


def soba_script(carry: Any, blocks: Any, i: Array, j: Array) -> Any:
    """One step on flat arrays."""
    x, y, v, k = carry
    upper, lower = rows(blocks.upper, i), rows(blocks.lower, j)
    g_y, H_v, J_v, F_x, F_y = _slopes(x, y, v, upper, lower)
    rate = 1 / (k + 1) ** 0.5
    x, v = x - GAMMA * rate * (J_v + F_x), v - RHO * rate * (H_v + F_y)
    return x, y - RHO * rate * g_y, v, k + 1


def saba_start(x: Array, y: Array) -> Any:
    """The state of the script: x, y, v and a table of gradients for each of five."""
    variables = y, y, x, x, y
    tables = tuple(
        (jnp.zeros((NUM_BLOCKS, *a.shape), a.dtype), jnp.zeros_like(a))
        for a in variables
    )
    return x, y, y, tables


def saba_script(carry: Any, blocks: Any, i: Array, j: Array) -> Any:
    """One step on flat arrays."""
    x, y, v, tables = carry
    upper, lower = rows(blocks.upper, i), rows(blocks.lower, j)
    new = _slopes(x, y, v, upper, lower)
    index = j, j, j, i, i
    directions, kept = [], []
    for q, (table, mean), k in zip(new, tables, index, strict=True):
        d = q - table[k]
        directions.append(d + mean)
        kept.append((table.at[k].set(q), mean + d / NUM_BLOCKS))
    g_y, H_v, J_v, F_x, F_y = directions
    x, v = x - GAMMA * (J_v + F_x), v - RHO * (H_v + F_y)
    return x, y - RHO * g_y, v, tuple(kept)


NOISE = (
    "Both make the same gradients. A step is some dozens of kernels of microseconds, "
    "so a count of steps, a norm or one more copy of a table row shows."
)

JOB = Job(
    title="A step of SOBA and of SABA",
    run=run,
    size=100,
    unit="entries each of x and y, batches of 64",
    reading=(
        "The published scripts take flat arrays and neither report nor guard anything. "
        "At this size the number of small kernels in a step is all that counts, and it "
        "is the same on both sides. The last column is what a solver holds: SABA a "
        "gradient for each minibatch."
    ),
)
