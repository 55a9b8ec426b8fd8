"""A step of Adan beside optax's, and beside the bytes it has to move."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import optkit as ok

from .measure import Candidate, Row, compiled, measure

NUM_LEAVES = 5
TREES_MOVED = 11  # read p, g, m, v, n, g_prev; write p, m, v, n, g_prev


def run(size: int, rounds: int) -> list[Row]:
    """Rows for `size` float32 parameters in five leaves."""
    shape = (size // NUM_LEAVES // 1000, 1000)
    keys = jr.split(jr.key(0), NUM_LEAVES)
    grads = {str(i): jr.normal(key, shape, jnp.float32) for i, key in enumerate(keys)}
    candidates = [
        _step("ok.adan", ok.adan(1e-3), grads),
        _step("optax.adan", optax.adan(1e-3), grads),
        _step("ok.adan, proximal decay", ok.adan(1e-3, weight_decay=0.02), grads),
        _step("optax.adan, decay", optax.adan(1e-3, weight_decay=0.02), grads),
        _stream("stream of the same bytes", grads),
    ]
    return measure(candidates, rounds)


def _step(name: str, tx: optax.GradientTransformation, grads: Any) -> Candidate:
    params = jax.tree.map(jnp.ones_like, grads)

    def step(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    carry = params, tx.init(params), jax.tree.map(jnp.copy, grads)
    return compiled(name, step, carry)


def _stream(name: str, grads: Any) -> Candidate:
    """The stream y = c x over 11/2 trees, in place: the traffic of one step."""
    half = jax.tree.map(lambda g: g[: g.shape[0] // 2] + 0, grads)
    trees = [jax.tree.map(jnp.copy, grads) for _ in range(TREES_MOVED // 2)]
    return compiled(name, lambda x: optax.tree.scale(0.999, x), [*trees, half])
