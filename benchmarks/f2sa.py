"""A step of F2SA beside the same step as the published script takes it.

That of benchopt's benchmark_bilevel is for two flat arrays, takes the gradients by x of
both lower iterates apart, has its step sizes as a vector over powers of the step, and
neither reports nor guards anything: here it stands for the floor. Both sides draw the
same minibatches as there (`bilevel.drawn`), with ten inner steps for each step of x.
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
    beside_scripts,
    candidate,
    drawn,
    objectives,
)
from .measure import Candidate
from .problems import Problem
from .report import Job, Result, Role

INNER_STEPS = 10
SCRIPT, OURS = "F2SA, flat script", "ok.bilevel.f2sa"


def schedule(inner_steps: int = 1) -> ok.bilevel.PenaltySchedule:
    """Exponents for noise in both; from λ_0 = 10, γ_0 = 0.1 and α_0 λ_0 = γ_0 / 2."""
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
    """F2SA with all its steps from a schedule."""
    return ok.bilevel.f2sa(
        *objectives(blocks),
        outer=steps.outer(),
        inner=steps.inner(),
        inner_y=steps.inner_y(),
        penalty=steps,
        inner_steps=steps.inner_steps,
    )


def batches(i: Array, j: Array) -> ok.bilevel.Batches:
    """Independent minibatches of f and g by x and by y; y and z share theirs."""
    return ok.bilevel.Batches(
        upper_x=i[0], upper_y=i[1:], lower_x=j[0], lower_y=j[1:], lower_z=j[1:]
    )


def run(size: int, rounds: int) -> Result:
    """Tables for x and y of `size` entries, 1,024 examples and batches of 64."""
    steps = {MATRICES: 1, VECTORS: 64}
    return beside_scripts(makers, [(SCRIPT, OURS)], steps, size, rounds)


def makers(blocks: Problem, steps: int) -> list[Callable[[], Candidate]]:
    """Script and solver, not yet compiled."""
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

    return [maker(SCRIPT, script, flat, "peer"), maker(OURS, ours(given), start)]


def ours(given: ok.bilevel.PenaltySchedule) -> Any:
    """A step of the solver on the given minibatches."""

    def step(state: Any, blocks: Problem, batches: ok.bilevel.Batches) -> Any:
        return solver(given, blocks).step(state, batches)[0]

    return step


def _draw(order: Order) -> tuple[Order, Array]:
    """The minibatches of x and of the inner steps."""
    return lax.scan(lambda o, _: drawn(o), order, length=1 + INNER_STEPS)


def script_start(x: Array, y: Array) -> Any:
    """The state: x, y, z, λ, and of the rates k0 + k, sizes and powers."""
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
    title="A step of F2SA, with ten of y and z each",
    run=run,
    size=100,
    unit="entries each of x and y, batches of 64",
    rounds=40,
    reading=(
        "With vectors a step is dozens of small kernels, and what counts is how many: "
        "the two gradients by x of the lower objective are one here, of y and z side "
        "by side. Scripts report nothing; optkit's step also returns losses and norms, "
        "which the compiler leaves out if nobody reads them."
    ),
)
