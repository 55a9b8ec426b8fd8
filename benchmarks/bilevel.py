"""A step of SOBA and of SABA, compared with the published scripts.

The scripts of benchopt's benchmark_bilevel, transcribed here, are written for two flat
arrays, report nothing and check nothing: they serve as the floor. Their step sizes are
a vector divided by a power of the step count, their table has two more rows (for the
mean and the direction), and they visit the minibatches in an order that is drawn again
after each pass; both sides draw in this way. The published problem has dense matrices,
and a step on it takes milliseconds. With the matrices held as vectors, a step takes a
hundredth of that, which shows the overhead; 128 such steps are one compiled loop, as
published.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array, Int, Key

import optkit as ok

from .measure import Candidate, compiled, measure
from .problems import Problem, in_matrices, rows, simulated
from .report import Job, Result, Role, at_most

NUM_BLOCKS = 16
MATRICES, VECTORS = "dense matrices, as published", "matrices held as vectors"
RHO, GAMMA = 0.3, 0.3
Objective = Callable[[Array, Array, Array], Array]
MakeSolver = Callable[[Problem], ok.Solver]
MakeCandidates = Callable[[Problem, int], Sequence[Callable[[], Candidate]]]
SOBA, SOBA_SCRIPT = "ok.bilevel.soba", "SOBA, published script"
SABA, SABA_SCRIPT = "ok.bilevel.saba", "SABA, published script"


def run(size: int, rounds: int) -> Result:
    """Compares SOBA and SABA for x and y with `size` entries and batches of 64."""
    pairs = [(SOBA_SCRIPT, SOBA), (SABA_SCRIPT, SABA)]
    return compare_with_scripts(
        makers, pairs, {MATRICES: 8, VECTORS: 128}, size, rounds
    )


def compare_with_scripts(
    makers: MakeCandidates,
    pairs: Sequence[tuple[str, str]],
    steps: dict[str, int],
    size: int,
    rounds: int,
) -> Result:
    """Makes a table and a target for each pair of a script and a solver, in each form.

    Args:
        makers: Function from the examples and the number of steps to the candidates.
        pairs: Names of a script and a solver.
        steps: Number of steps in one loop, for each form of the problem.
        size: Number of entries of x and of y.
        rounds: How often each candidate is timed.

    Returns:
        The tables and targets.
    """
    tables, targets = [], []
    for form, num_steps in steps.items():
        candidates = [make() for make in makers(examples(form, size), num_steps)]
        multiples = {
            candidate.name: {"state / (x, y)": state_multiple(candidate.carry[0], size)}
            for candidate in candidates
        }
        timing = measure(candidates, rounds)
        for script, solver in pairs:
            count = "1 step" if num_steps == 1 else f"{num_steps} steps"
            method, pair = script.partition(",")[0], [script, solver]
            title = f"{method}: {count}, {form}"
            tables.append(timing.table(title, script, pair, extras=multiples))
            target = (
                f"A step of `{solver}` takes at most the time of the published script "
                f"({form})"
            )
            targets.append(at_most(1.0, tables[-1].row(solver), target, CAUSE))
    return Result(tables, targets)


def makers(blocks: Problem, steps: int) -> list[Callable[[], Candidate]]:
    """The scripts and solvers of SOBA and SABA, not yet compiled."""
    size = blocks.upper.q.shape[-1]
    zeros = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)

    def script(name: str, step: Any, start: Any) -> Callable[[], Candidate]:
        return lambda: candidate(name, step, start(*zeros), blocks, steps, "peer")

    def solver(name: str, make: MakeSolver) -> Callable[[], Candidate]:
        start = make(blocks).init(*zeros)
        return lambda: candidate(name, solver_step(make), start, blocks, steps)

    return [
        script(SOBA_SCRIPT, soba_script, soba_start),
        solver(SOBA, soba),
        script(SABA_SCRIPT, saba_script, saba_start),
        solver(SABA, saba),
    ]


def examples(form: str, size: int) -> Problem:
    """The problem in minibatches, in one of its two forms."""
    problem = in_float32(simulated(key=jr.key(0), dim_x=size, dim_y=size))
    return in_blocks(in_matrices(problem) if form == MATRICES else problem)


def in_blocks(problem: Problem) -> Problem:
    """Groups the examples into minibatches."""
    return jax.tree.map(lambda a: a.reshape(NUM_BLOCKS, -1, *a.shape[1:]), problem)


def in_float32(tree: Any) -> Any:
    """The same pytree in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def objectives(blocks: Problem) -> tuple[Objective, Objective]:
    """Both levels; a batch is the index of a minibatch."""

    def upper(x: Array, y: Array, i: Array) -> Array:
        return rows(blocks.upper, i).mean(x, y)

    def lower(x: Array, y: Array, j: Array) -> Array:
        return rows(blocks.lower, j).mean(x, y)

    return upper, lower


def soba(blocks: Problem) -> ok.Solver:
    """SOBA with decreasing step sizes."""

    def decreasing(c: float) -> optax.GradientTransformation:
        return optax.sgd(lambda k: c / (k + 1) ** 0.5)

    return ok.bilevel.soba(
        *objectives(blocks), outer=decreasing(GAMMA), inner=decreasing(RHO)
    )


def saba(blocks: Problem) -> ok.Solver:
    """SABA with constant step sizes."""
    return ok.bilevel.saba(
        *objectives(blocks),
        num_upper=NUM_BLOCKS,
        num_lower=NUM_BLOCKS,
        outer=optax.sgd(GAMMA),
        inner=optax.sgd(RHO),
    )


def state_multiple(state: Any, size: int) -> float:
    """Bytes of a state divided by those of x and y (`size` float32 entries each)."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / (2 * 4 * size)


class Order(NamedTuple):
    """The order of a level's minibatches, drawn again after each pass."""

    blocks: Int[Array, " n"]
    position: Int[Array, ""]
    key: Key[Array, ""]


def orders() -> tuple[Order, Order]:
    """The orders of the upper and of the lower level."""
    upper, lower = (
        Order(jnp.arange(NUM_BLOCKS), jnp.zeros((), jnp.int32), key)
        for key in jr.split(jr.key(1))
    )
    return upper, lower


def next_minibatch(order: Order) -> tuple[Order, Int[Array, ""]]:
    """Draws the index of the next minibatch."""

    def reshuffle(order: Order) -> Order:
        key, own = jr.split(order.key)
        return Order(jr.permutation(own, order.blocks), order.position * 0, key)

    def advance(order: Order) -> Order:
        return order._replace(position=order.position + 1)

    is_last = order.position == NUM_BLOCKS - 1
    return lax.cond(is_last, reshuffle, advance, order), order.blocks[order.position]


def candidate(
    name: str,
    step: Any,
    state: Any,
    blocks: Problem,
    num_steps: int,
    role: Role = "ours",
    draw: Any = next_minibatch,
) -> Candidate:
    """A loop of steps, each of which draws a minibatch for each level."""

    def steps(args: Any) -> Any:
        def one(carry: Any, _: None) -> Any:
            state, (upper, lower) = carry
            (upper, i), (lower, j) = draw(upper), draw(lower)
            return (step(state, blocks, i, j), (upper, lower)), None

        *carry, blocks = args
        return lax.scan(one, tuple(carry), length=num_steps)[0]

    made = compiled(name, steps, (state, orders(), blocks), role, donate=False)
    # The examples are an argument, as for the other candidates, and never an output.
    return made._replace(run=lambda args: (*made.run(args), blocks))


def solver_step(make: MakeSolver) -> Any:
    """A step of a solver on the minibatches i and j."""

    def step(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
        batch = ok.bilevel.Batches(upper_x=i, lower_x=j)
        if isinstance(state, ok.bilevel.SabaState):
            batch = ok.bilevel.Batches(
                upper_x=ok.bilevel.Term(i, i), lower_x=ok.bilevel.Term(j, j)
            )
        return make(blocks).step(state, batch)[0]

    return step


def _slopes(
    x: Array, y: Array, v: Array, blocks: Problem, i: Array, j: Array
) -> tuple[Array, ...]:
    """∇_y g, H v, J v, ∇_x F, ∇_y F."""
    upper, lower = objectives(blocks)

    def slope(y: Array, x: Array) -> Array:
        return jax.grad(lower, argnums=1)(x, y, j)

    g_y, pull = jax.vjp(slope, y, x)
    F_x, F_y = jax.grad(upper, argnums=(0, 1))(x, y, i)
    return g_y, *pull(v), F_x, F_y


class Rates(NamedTuple):
    """Step sizes a / (k + 1)^c, for y and v and for x."""

    a: Array
    c: Array
    k: Array


def initial_rates(c: float) -> Rates:
    """The step sizes at the start."""
    return Rates(jnp.array([RHO, GAMMA]), jnp.full(2, c), jnp.zeros((), jnp.int32))


def next_step_sizes(rates: Rates) -> tuple[Array, Rates]:
    """The current step sizes, and the state for the next ones."""
    sizes = rates.a / (rates.k + 1) ** rates.c
    return sizes, rates._replace(k=rates.k + 1)


def soba_start(x: Array, y: Array) -> Any:
    """The initial state of the script: x, y, v and the step sizes."""
    return x, y, y, initial_rates(0.5)


def soba_script(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
    """One step on flat arrays."""
    x, y, v, rates = state
    (rho, gamma), rates = next_step_sizes(rates)
    g_y, H_v, J_v, F_x, F_y = _slopes(x, y, v, blocks, i, j)
    return (
        x - gamma * (J_v + F_x),
        y - rho * g_y,
        v - rho * (H_v + F_y),
        rates,
    )


def saba_start(x: Array, y: Array) -> Any:
    """The initial state: x, y, v, the step sizes, and a table for each gradient."""
    tables = [jnp.zeros((NUM_BLOCKS + 2, *a.shape), a.dtype) for a in (y, y, x, x, y)]
    return x, y, y, initial_rates(0.0), tuple(tables)


def saba_script(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
    """One step on flat arrays; the last rows of a table are mean and direction."""
    x, y, v, rates, tables = state
    (rho, gamma), rates = next_step_sizes(rates)
    new = _slopes(x, y, v, blocks, i, j)
    kept = []
    for q, table, k in zip(new, tables, (j, j, j, i, i), strict=True):
        d = q - table[k]
        direction = d + table[-2]
        table = table.at[-1].set(direction).at[-2].add(d / NUM_BLOCKS)
        kept.append(table.at[k].set(q))
    g_y, H_v, J_v, F_x, F_y = (table[-1] for table in kept)
    return (
        x - gamma * (J_v + F_x),
        y - rho * g_y,
        v - rho * (H_v + F_y),
        rates,
        tuple(kept),
    )


CAUSE = (
    "Both sides compute the same gradients, which take nearly all of the time with "
    "dense matrices. With vectors, a step is a few dozen kernels of microseconds each, "
    "and what counts is their number. A step size that changes costs one kernel for "
    "each optax transform: SOBA has three of them, its script one vector. With "
    "constant step sizes, SOBA takes 0.96 to 0.98 of the time of its script; this "
    "includes the check that the step was finite, which costs 0.01 to 0.03."
)

JOB = Job(
    title="A step of SOBA and of SABA",
    run=run,
    size=100,
    unit="entries each in x and y, batches of 64",
    rounds=100,
    reading=(
        "The published scripts, transcribed here, work on flat arrays, report nothing "
        "and check nothing. Their problem has dense matrices. With the matrices held "
        "as vectors, a step takes a hundredth of the time, and all that counts is the "
        "number of small kernels. `ok.bilevel.saba` reads a row of its table once, "
        "before it writes it, so the compiler does not copy the table as it does for "
        "the script. The last column is the memory that a solver keeps; SABA keeps a "
        "gradient for each minibatch."
    ),
)
