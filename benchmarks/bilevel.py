"""A step of SOBA and of SABA beside the same step as the published scripts take it.

Those of benchopt's benchmark_bilevel are for two flat arrays, and neither report nor
guard anything: here they stand for the floor. Their step sizes are a vector over a
power of the step, their table has two more rows, for the mean and for the direction,
and they visit minibatches in an order that is drawn anew after each pass. Both sides
draw so. The published problem has dense matrices, and a step of it takes milliseconds.
Held as vectors, the same problem takes a hundredth of that, and shows what else there
is in a step; 128 of them are one compiled loop, as published.
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
MATRICES, VECTORS = "dense matrices, as published", "held as vectors"
RHO, GAMMA = 0.3, 0.3
Objective = Callable[[Array, Array, Array], Array]
MakeSolver = Callable[[Problem], ok.Solver]
MakeCandidates = Callable[[Problem, int], Sequence[Callable[[], Candidate]]]
SOBA, SOBA_SCRIPT = "ok.bilevel.soba", "SOBA, flat script"
SABA, SABA_SCRIPT = "ok.bilevel.saba", "SABA, flat script"


def run(size: int, rounds: int) -> Result:
    """Tables for SOBA and SABA: x and y of `size` entries, batches of 64."""
    pairs = [(SOBA_SCRIPT, SOBA), (SABA_SCRIPT, SABA)]
    return beside_scripts(makers, pairs, {MATRICES: 8, VECTORS: 128}, size, rounds)


def beside_scripts(
    makers: MakeCandidates,
    pairs: Sequence[tuple[str, str]],
    steps: dict[str, int],
    size: int,
    rounds: int,
) -> Result:
    """A table and a target for each pair of a script and a solver, in either form.

    Args:
        makers: of the candidates, from the examples and the steps in a loop.
        pairs: names of candidates.
        steps: how many are one loop, by the form of the problem.
        size: of x and of y.
        rounds: how often each candidate is run.

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
            title, pair = f"{num_steps} steps, {form}", [script, solver]
            tables.append(timing.table(title, script, pair, extras=multiples))
            target = (
                f"A step of `{solver}` takes at most what the published script's "
                f"takes: {form}"
            )
            targets.append(at_most(1.0, tables[-1].row(solver), target, CAUSE))
    return Result(tables, targets)


def makers(blocks: Problem, steps: int) -> list[Callable[[], Candidate]]:
    """Script and solver, of SOBA and then of SABA, not yet compiled."""
    size = blocks.upper.q.shape[-1]
    zeros = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)

    def script(name: str, step: Any, start: Any) -> Callable[[], Candidate]:
        return lambda: candidate(name, step, start(*zeros), blocks, steps, "peer")

    def solver(name: str, make: MakeSolver) -> Callable[[], Candidate]:
        start = make(blocks).init(*zeros)
        return lambda: candidate(name, ours(make), start, blocks, steps)

    return [
        script(SOBA_SCRIPT, soba_script, soba_start),
        solver(SOBA, soba),
        script(SABA_SCRIPT, saba_script, saba_start),
        solver(SABA, saba),
    ]


def examples(form: str, size: int) -> Problem:
    """The problem in minibatches, in one of its forms."""
    problem = single(simulated(key=jr.key(0), dim_x=size, dim_y=size))
    return in_blocks(in_matrices(problem) if form == MATRICES else problem)


def in_blocks(problem: Problem) -> Problem:
    """The examples in minibatches."""
    return jax.tree.map(lambda a: a.reshape(NUM_BLOCKS, -1, *a.shape[1:]), problem)


def single(tree: Any) -> Any:
    """The same in float32."""
    return jax.tree.map(lambda a: a.astype(jnp.float32), tree)


def objectives(blocks: Problem) -> tuple[Objective, Objective]:
    """Both levels, of which a batch is the index of a minibatch."""

    def upper(x: Array, y: Array, i: Array) -> Array:
        return rows(blocks.upper, i).mean(x, y)

    def lower(x: Array, y: Array, j: Array) -> Array:
        return rows(blocks.lower, j).mean(x, y)

    return upper, lower


def soba(blocks: Problem) -> ok.Solver:
    """SOBA with decreasing steps."""

    def decreasing(c: float) -> optax.GradientTransformation:
        return optax.sgd(lambda k: c / (k + 1) ** 0.5)

    return ok.bilevel.soba(
        *objectives(blocks), outer=decreasing(GAMMA), inner=decreasing(RHO)
    )


def saba(blocks: Problem) -> ok.Solver:
    """SABA with constant steps."""
    return ok.bilevel.saba(
        *objectives(blocks),
        num_upper=NUM_BLOCKS,
        num_lower=NUM_BLOCKS,
        outer=optax.sgd(GAMMA),
        inner=optax.sgd(RHO),
    )


def state_multiple(state: Any, size: int) -> float:
    """Bytes of a state over those of x and y, of `size` float32 entries each."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / (2 * 4 * size)


class Order(NamedTuple):
    """Of the minibatches of a level: each once, then an order drawn anew."""

    blocks: Int[Array, " n"]
    position: Int[Array, ""]
    key: Key[Array, ""]


def orders() -> tuple[Order, Order]:
    """Of the upper and of the lower level."""
    upper, lower = (
        Order(jnp.arange(NUM_BLOCKS), jnp.zeros((), jnp.int32), key)
        for key in jr.split(jr.key(1))
    )
    return upper, lower


def drawn(order: Order) -> tuple[Order, Int[Array, ""]]:
    """The next minibatch's index."""

    def again(order: Order) -> Order:
        key, own = jr.split(order.key)
        return Order(jr.permutation(own, order.blocks), order.position * 0, key)

    def onward(order: Order) -> Order:
        return order._replace(position=order.position + 1)

    is_last = order.position == NUM_BLOCKS - 1
    return lax.cond(is_last, again, onward, order), order.blocks[order.position]


def candidate(
    name: str,
    step: Any,
    state: Any,
    blocks: Problem,
    num_steps: int,
    role: Role = "ours",
    draw: Any = drawn,
) -> Candidate:
    """Many steps, of which each draws minibatches for either level."""

    def steps(args: Any) -> Any:
        def one(carry: Any, _: None) -> Any:
            state, (upper, lower) = carry
            (upper, i), (lower, j) = draw(upper), draw(lower)
            return (step(state, blocks, i, j), (upper, lower)), None

        *carry, blocks = args
        return lax.scan(one, tuple(carry), length=num_steps)[0]

    made = compiled(name, steps, (state, orders(), blocks), role, donate=False)
    # It reads examples where all others do, and hands on none.
    return made._replace(run=lambda args: (*made.run(args), blocks))


def ours(make: MakeSolver) -> Any:
    """A step of a solver on the blocks i and j."""

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
    """Of y and v, and of x, as a / (k + 1)^c."""

    a: Array
    c: Array
    k: Array


def rates(c: float) -> Rates:
    """Of the first step."""
    return Rates(jnp.array([RHO, GAMMA]), jnp.full(2, c), jnp.zeros((), jnp.int32))


def rated(given: Rates) -> tuple[Array, Rates]:
    """The step sizes, and those of the next step."""
    sizes = given.a / (given.k + 1) ** given.c
    return sizes, given._replace(k=given.k + 1)


def soba_start(x: Array, y: Array) -> Any:
    """The state of the script: x, y, v and the rates."""
    return x, y, y, rates(0.5)


def soba_script(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
    """One step on flat arrays."""
    x, y, v, given = state
    (rho, gamma), given = rated(given)
    g_y, H_v, J_v, F_x, F_y = _slopes(x, y, v, blocks, i, j)
    return (
        x - gamma * (J_v + F_x),
        y - rho * g_y,
        v - rho * (H_v + F_y),
        given,
    )


def saba_start(x: Array, y: Array) -> Any:
    """The state of the script: x, y, v, the rates and a table for each gradient."""
    tables = [jnp.zeros((NUM_BLOCKS + 2, *a.shape), a.dtype) for a in (y, y, x, x, y)]
    return x, y, y, rates(0.0), tuple(tables)


def saba_script(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
    """One step on flat arrays; a table's last rows are the mean and the direction."""
    x, y, v, given, tables = state
    (rho, gamma), given = rated(given)
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
        given,
        tuple(kept),
    )


CAUSE = (
    "Both make the same gradients, and of matrices these take nearly all of a step. "
    "With vectors it is some dozens of kernels of microseconds, and their number "
    "counts. A step size that changes is a kernel for each optax transform, of which "
    "SOBA has three where its script has a vector: with constant ones it takes 0.96 to "
    "0.98 of its script's time, with the check that the step was finite, which costs "
    "0.01 to 0.03."
)

JOB = Job(
    title="A step of SOBA and of SABA",
    run=run,
    size=100,
    unit="entries each of x and y, batches of 64",
    rounds=100,
    reading=(
        "The published scripts take flat arrays and neither report nor guard anything. "
        "Their problem has dense matrices; held as vectors it takes a hundredth of the "
        "time, and the number of small kernels in a step is all that counts. "
        "`ok.bilevel.saba` reads a table's row once, before it writes it, so that the compiler "
        "makes no copy of the table, as it does of the script's. The last column is "
        "what a solver holds: SABA a gradient for each minibatch."
    ),
)
