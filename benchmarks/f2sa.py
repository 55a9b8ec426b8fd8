"""A step of F2SA, compared with the published script.

The script of benchopt's benchmark_bilevel, transcribed here, is written for two flat
arrays, computes the x-gradients at the two lower iterates separately, divides a vector
of step sizes by powers of the step count, reports nothing and checks nothing: it serves
as the floor. Both sides draw the same minibatches in its way
(`bilevel.next_minibatch`), with ten inner steps for each step of x.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

import optkit as ok

from .bilevel import (
    MATRICES,
    VECTORS,
    Order,
    candidate,
    compare_with_scripts,
    next_minibatch,
    objectives,
)
from .measure import Candidate
from .problems import Problem
from .report import Job, Result, Role

INNER_STEPS = 10
SCRIPT, OURS = "F2SA, published script", "ok.bilevel.f2sa"


def schedule(inner_steps: int = 1) -> ok.bilevel.PenaltySchedule:
    """Exponents for noise in both levels, λ_0 = 10, γ_0 = 0.1, α_0 λ_0 = γ_0 / 2."""
    a, c, k0, gamma, penalty = 5 / 7, 4 / 7, 1000.0, 0.1, 10.0
    return ok.bilevel.PenaltySchedule(
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


def solver(steps: ok.bilevel.PenaltySchedule, blocks: Problem) -> ok.Solver:
    """F2SA with all step sizes from a schedule."""
    return ok.bilevel.f2sa(*objectives(blocks), schedule=steps)


def batches(i: Array, j: Array) -> ok.bilevel.Batches:
    """Independent minibatches for f and g and for x and y; y and z share theirs."""
    return ok.bilevel.Batches(
        upper_x=i[0], upper_y=i[1:], lower_x=j[0], lower_y=j[1:], lower_z=j[1:]
    )


def run(size: int, rounds: int) -> Result:
    """Compares them for x and y with `size` entries, 1,024 examples, batches of 64."""
    steps = {MATRICES: 1, VECTORS: 64}
    return compare_with_scripts(makers, [(SCRIPT, OURS)], steps, size, rounds)


def makers(blocks: Problem, steps: int) -> list[Callable[[], Candidate]]:
    """The script and the solver, not yet compiled."""
    size = blocks.upper.q.shape[-1]
    x, y = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)
    given = schedule(INNER_STEPS)
    flat, start = script_start(x, y), solver(given, blocks).init(x, y)

    def maker(
        name: str, step: Any, state: Any, role: Role = "ours"
    ) -> Callable[[], Candidate]:
        def on(state: Any, blocks: Problem, i: Array, j: Array) -> Any:
            return step(state, blocks, batches(i, j))

        return lambda: candidate(name, on, state, blocks, steps, role, _draw)

    return [maker(SCRIPT, script, flat, "peer"), maker(OURS, solver_step(given), start)]


def solver_step(given: ok.bilevel.PenaltySchedule) -> Any:
    """A step of the solver on given minibatches."""

    def step(state: Any, blocks: Problem, batches: ok.bilevel.Batches) -> Any:
        return solver(given, blocks).step(state, batches)[0]

    return step


def _draw(order: Order) -> tuple[Order, Array]:
    """Draws the minibatches for x and for the inner steps."""
    return lax.scan(lambda o, _: next_minibatch(o), order, length=1 + INNER_STEPS)


def script_start(x: Array, y: Array) -> Any:
    """The initial state: x, y, z, λ, and k0 + k, sizes and powers of the steps."""
    given = schedule()
    sizes = jnp.array([given.c_alpha, given.c_gamma])
    rates = jnp.float32(given.k0), sizes, jnp.array([given.a, given.c])
    return x, y, y, jnp.float32(given.initial_penalty), rates


def script(state: Any, blocks: Problem, batches: ok.bilevel.Batches) -> Any:
    """One step on flat arrays."""
    given = schedule()
    x, y, z, penalty, (k, sizes, powers) = state
    alpha, gamma = sizes / k**powers
    upper, lower = objectives(blocks)
    F_x, F_y = (jax.grad(upper, argnums=i) for i in (0, 1))
    g_x, g_y = (jax.grad(lower, argnums=i) for i in (0, 1))

    def inner(carry: Any, batch: Any) -> Any:
        y, z = carry
        i, j_y, j_z = batch
        d_y = F_y(x, y, i) + penalty * g_y(x, y, j_y)
        return (y - alpha * d_y, z - gamma * g_y(x, z, j_z)), None

    inner_batches = batches.upper_y, batches.lower_y, batches.lower_z
    (y, z), _ = lax.scan(inner, (y, z), inner_batches)
    gap = g_x(x, y, batches.lower_x) - g_x(x, z, batches.lower_x)
    x = x - alpha * (F_x(x, y, batches.upper_x) + penalty * gap)
    catch_up = given.target * gamma / alpha - penalty
    growth = jnp.minimum(given.growth * alpha * penalty**2, catch_up)
    return x, y, z, penalty + growth, (k + 1, sizes, powers)


JOB = Job(
    title="A step of F2SA, with ten inner steps",
    run=run,
    size=100,
    unit="entries each in x and y, batches of 64",
    rounds=40,
    reading=(
        "With vectors, a step is dozens of small kernels; what counts is their number. "
        "optkit computes the two x-gradients of the lower objective as one, at y and z "
        "side by side. The script reports nothing. A step of optkit also returns "
        "losses and norms, which the compiler removes if nobody reads them."
    ),
)
