"""A step of SOBA and of SABA beside the same step as published scripts write it.

Those are for two flat arrays, and neither report nor guard anything: here they stand
for the floor. Both sides draw the same minibatches, 100 steps in one compiled loop.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax import lax
from jaxtyping import Array

import optkit as ok

from .measure import Candidate, Row, compiled, measure
from .problems import Quadratics, quadratic, rows, simulated

NUM_BLOCKS, STEPS = 16, 100
RHO, GAMMA = 0.1, 0.1


def run(size: int, rounds: int) -> list[Row]:
    """Rows for x and y of `size` entries, 1,024 examples and batches of 64."""
    problem = simulated(key=jr.key(0), dim_x=size, dim_y=size)
    blocks = jax.tree.map(
        lambda a: a.reshape(NUM_BLOCKS, -1, *a.shape[1:]).astype(jnp.float32), problem
    )
    x, y = jnp.zeros(size, jnp.float32), jnp.zeros(size, jnp.float32)
    decreasing = optax.sgd(lambda k: RHO / (k + 1) ** 0.5)
    soba = ok.soba(quadratic, quadratic, outer=decreasing, inner=decreasing)
    saba = ok.saba(
        quadratic,
        quadratic,
        num_upper=NUM_BLOCKS,
        num_lower=NUM_BLOCKS,
        outer=optax.sgd(GAMMA),
        inner=optax.sgd(RHO),
    )
    tables = _tables(x, y)
    candidates = [
        _candidate("SOBA, flat script", _flat_soba, (x, y, y, jnp.zeros(())), blocks),
        _candidate("ok.soba", _ours(soba), soba.init(x, y), blocks),
        _candidate("SABA, flat script", _flat_saba, (x, y, y, tables), blocks),
        _candidate("ok.saba", _ours(saba), saba.init(x, y), blocks),
    ]
    return measure(candidates, rounds)


def _candidate(name: str, step: Any, carry: Any, blocks: Any) -> Candidate:
    """Many steps, of which each draws a minibatch for either level."""

    def steps(carry: Any) -> Any:
        def one(carry: Any, key: Array) -> Any:
            i, j = jr.randint(key, (2,), 0, NUM_BLOCKS)
            return step(carry, blocks, i, j), None

        state, blocks, key = carry
        key, own = jr.split(key)
        state, _ = lax.scan(one, state, jr.split(own, STEPS))
        return state, blocks, key

    return compiled(name, steps, (carry, blocks, jr.key(1)), donate=False)


def _ours(solver: ok.BilevelSolver) -> Any:
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


def _flat_soba(carry: Any, blocks: Any, i: Array, j: Array) -> Any:
    x, y, v, k = carry
    upper, lower = rows(blocks.upper, i), rows(blocks.lower, j)
    g_y, H_v, J_v, F_x, F_y = _slopes(x, y, v, upper, lower)
    rate = 1 / (k + 1) ** 0.5
    x, v = x - GAMMA * rate * (J_v + F_x), v - RHO * rate * (H_v + F_y)
    return x, y - RHO * rate * g_y, v, k + 1


def _tables(x: Array, y: Array) -> tuple[tuple[Array, Array], ...]:
    variables = y, y, x, x, y
    return tuple(
        (jnp.zeros((NUM_BLOCKS, *a.shape), a.dtype), jnp.zeros_like(a))
        for a in variables
    )


def _flat_saba(carry: Any, blocks: Any, i: Array, j: Array) -> Any:
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
