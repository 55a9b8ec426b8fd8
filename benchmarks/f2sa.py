"""A step of F2SA beside the same step as published scripts write it.

Those are for two flat arrays, take the gradients by x of both lower iterates apart, and
neither report nor guard anything: here they stand for the floor. Both sides draw the
same minibatches, ten inner steps for each step of x, 50 of those in one compiled loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array

import optkit as ok

from .bilevel import NUM_BLOCKS, in_blocks, single, state_multiple
from .measure import Candidate, compiled, measure
from .problems import Problem, quadratic, rows, simulated
from .report import Job, Result, Role, at_most

STEPS, INNER_STEPS = 50, 10
SCRIPT, OURS = "F2SA, flat script", "ok.f2sa"


def schedule(inner_steps: int = 1) -> ok.PenaltySchedule:
    """Exponents for noise in both; from λ_0 = 10, γ_0 = 0.1 and α_0 λ_0 = γ_0 / 2."""
    a, c, k0, gamma, penalty = 5 / 7, 4 / 7, 1000.0, 0.1, 10.0
    return ok.PenaltySchedule(
        a=a,
        c=c,
        c_alpha=gamma / (2 * penalty) * k0**a,
        c_gamma=gamma * k0**c,
        k0=k0,
        initial_penalty=penalty,
        growth=0.1,
        target=0.5,
        inner_steps=inner_steps,
    )


def solver(steps: ok.PenaltySchedule) -> ok.BilevelSolver:
    """F2SA with all its steps from a schedule."""
    return ok.f2sa(
        quadratic,
        quadratic,
        outer=steps.outer(),
        inner=steps.inner(),
        inner_y=steps.inner_y(),
        penalty=steps,
        inner_steps=steps.inner_steps,
    )


def draw(blocks: Problem, key: Array, inner_steps: int) -> ok.Batches:
    """Independent minibatches of f and g by x and by y; y and z share theirs."""
    i, j = jr.randint(key, (2, 1 + inner_steps), 0, NUM_BLOCKS)
    inner = rows(blocks.lower, j[1:])
    return ok.Batches(
        upper_x=rows(blocks.upper, i[0]),
        upper_y=rows(blocks.upper, i[1:]),
        lower_x=rows(blocks.lower, j[0]),
        lower_y=inner,
        lower_z=inner,
    )


def run(size: int, rounds: int) -> Result:
    """Rows for x and y of `size` entries, 1,024 examples and batches of 64."""
    candidates = [make() for make in makers(size)]
    multiples = {
        candidate.name: {"state / (x, y)": state_multiple(candidate.carry[0], size)}
        for candidate in candidates
    }
    timing = measure(candidates, rounds)
    table = timing.table(f"{STEPS} steps", SCRIPT, extras=multiples)
    target = "A step of `ok.f2sa` takes at most what the published script's takes"
    return Result([table], [at_most(1.0, table.row(OURS), target, NOISE)])


def makers(size: int) -> list[Callable[[], Candidate]]:
    """Script and solver, not yet compiled."""
    blocks = single(in_blocks(simulated(key=jr.key(0), dim_x=size, dim_y=size)))
    x, y = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)
    ours = solver(schedule(INNER_STEPS))

    def step(state: Any, batches: ok.Batches) -> Any:
        return ours.step(state, batches)[0]

    return [
        lambda: _candidate(SCRIPT, script, script_start(x, y), blocks, "peer"),
        lambda: _candidate(OURS, step, ours.init(x, y), blocks),
    ]


def script_start(x: Array, y: Array) -> Any:
    """The state of the script: x, y, z, λ and the count of steps."""
    return x, y, y, jnp.float32(schedule().initial_penalty), jnp.float32(0)


def _candidate(
    name: str, step: Any, carry: Any, blocks: Any, role: Role = "ours"
) -> Candidate:
    def steps(carry: Any) -> Any:
        state, blocks, key = carry
        key, own = jr.split(key)

        def one(state: Any, key: Array) -> Any:
            return step(state, draw(blocks, key, INNER_STEPS)), None

        return lax.scan(one, state, jr.split(own, STEPS))[0], blocks, key

    return compiled(name, steps, (carry, blocks, jr.key(1)), role, donate=False)


def script(carry: Any, batches: ok.Batches) -> Any:
    """One step on flat arrays."""
    x, y, z, penalty, k = carry
    given = schedule()
    alpha, gamma = given.alpha(k), given.gamma(k)
    by_y = jax.grad(quadratic, argnums=1)
    by_x = jax.grad(quadratic, argnums=0)

    def inner(carry: Any, batch: Any) -> Any:
        y, z = carry
        upper_y, lower_y, lower_z = batch
        d_y = by_y(x, y, upper_y) + penalty * by_y(x, y, lower_y)
        return (y - alpha * d_y, z - gamma * by_y(x, z, lower_z)), None

    inner_batches = batches.upper_y, batches.lower_y, batches.lower_z
    (y, z), _ = lax.scan(inner, (y, z), inner_batches)
    gap = by_x(x, y, batches.lower_x) - by_x(x, z, batches.lower_x)
    x = x - alpha * (by_x(x, y, batches.upper_x) + penalty * gap)
    return x, y, z, penalty + given.delta(k, penalty), k + 1


NOISE = (
    "Both make the same gradients; what is left is a norm for the report and the "
    "rounding of a clock that ticks in fractions of a millisecond a step."
)

JOB = Job(
    title="A step of F2SA, with ten of y and z each",
    run=run,
    size=100,
    unit="entries each of x and y, batches of 64",
    reading=(
        "At this size a step is dozens of small kernels, and what counts is how many: "
        "the two gradients by x of the lower objective are one here, of y and z side "
        "by side. Scripts report nothing; optkit's step also returns losses and norms, "
        "which the compiler leaves out if nobody reads them."
    ),
)
