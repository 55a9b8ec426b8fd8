"""Loss, gradient and Hutchinson diagonal in one pass, beside the pieces."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import optkit as ok
from optkit._tree import signs

from .measure import Candidate, Row, compiled, measure

NUM_EXAMPLES = 512


def run(size: int, rounds: int) -> list[Row]:
    """Rows for a tanh network of about `size` float32 weights on 784 inputs."""
    width = int((-794 + (794**2 + 4 * size) ** 0.5) / 2)  # of both hidden layers
    widths = (784, width, width, 10)
    keys = jr.split(jr.key(0), len(widths))
    params = [
        jr.normal(k, (m, n), jnp.float32) / m**0.5
        for k, m, n in zip(keys[:-1], widths[:-1], widths[1:], strict=True)
    ]
    x = jr.normal(keys[-1], (NUM_EXAMPLES, 784), jnp.float32)
    y = jnp.arange(NUM_EXAMPLES) % 10
    z = signs(keys[-1], params)
    value_and_grad = jax.value_and_grad(_loss)
    one_pass = ok.value_grad_and_diag(_loss)

    functions = {
        "jvp of value_and_grad, ready probe": [
            lambda p, k: jax.jvp(lambda p: value_and_grad(p, x, y), (p,), (z,))
        ],
        "ok.value_grad_and_diag": [lambda p, k: one_pass(p, x, y, key=k)],
        "gradient, then a separate HVP": [
            lambda p, k: value_and_grad(p, x, y),
            lambda p, k: ok.hvp(_loss, p, z, x, y),
        ],
        "gradient alone": [lambda p, k: value_and_grad(p, x, y)],
        "drawing the probe alone": [lambda p, k: signs(k, p)],
    }
    candidates = [_candidate(*item, params) for item in functions.items()]
    return measure(candidates, rounds)


def _candidate(name: str, functions: list[Any], params: Any) -> Candidate:
    """Times functions of (params, key), one after the other."""
    carry = (params, jr.key(1))
    made = [compiled(name, lambda c, f=f: f(*c), carry, False) for f in functions]

    def run(carry: Any) -> Any:
        jax.block_until_ready([candidate.run(carry) for candidate in made])
        return carry

    seconds = sum(candidate.compile_seconds for candidate in made)
    return Candidate(name, run, carry, seconds, max(c.temp_bytes for c in made))


def _loss(params: Any, x: Any, y: Any) -> Any:
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    logits = x @ params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
