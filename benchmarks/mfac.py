"""A step of M-FAC beside two bare passes over its window."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr

import optkit as ok
from optkit._tree import combine, project

from .measure import Candidate, Row, compiled, measure

WINDOW = 512
NUM_LEAVES = 4


def run(size: int, rounds: int) -> list[Row]:
    """Rows for `size` float32 parameters in four leaves and a window of 512."""
    shape = (size // NUM_LEAVES // 1000, 1000)
    keys = jr.split(jr.key(0), NUM_LEAVES)
    grads = {str(i): jr.normal(key, shape, jnp.float32) for i, key in enumerate(keys)}
    candidates = [
        _passes("two bare passes over the window", grads),
        _step("ok.scale_by_mfac", grads, None),
        _step("ok.scale_by_mfac, bfloat16 window", grads, jnp.bfloat16),
    ]
    return measure(candidates, rounds)


def _step(name: str, grads: Any, window_dtype: Any) -> Candidate:
    tx = ok.scale_by_mfac(WINDOW, 1e-3, window_dtype=window_dtype)

    def step(carry: Any) -> Any:
        state, grads = carry
        updates, state = tx.update(grads, state)
        # The next gradient: of the same size, never the same.
        grads = jax.tree.map(lambda g, u: -jnp.roll(g, 1) + 1e-3 * u, grads, updates)
        return state, grads

    carry = jax.jit(tx.init)(grads), jax.tree.map(jnp.copy, grads)
    return compiled(name, step, carry)


def _passes(name: str, grads: Any) -> Candidate:
    """G g, then Gᵀ of it: what a step has to read."""

    def step(carry: Any) -> Any:
        rows, grads = carry
        mixed = combine(project(rows, grads), rows)
        return rows, jax.tree.map(lambda g, u: -jnp.roll(g, 1) + 1e-3 * u, grads, mixed)

    rows = jax.tree.map(lambda g: jnp.zeros((WINDOW, *g.shape), g.dtype), grads)
    return compiled(name, step, (rows, jax.tree.map(jnp.copy, grads)))
