"""The tanh network of the curvature benchmarks: 784 inputs, two hidden layers."""

from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

NUM_EXAMPLES = 512
NUM_INPUTS, NUM_CLASSES = 784, 10


def make_network(size: int) -> tuple[list[Any], Any, Any]:
    """About `size` float32 weights in three leaves, a batch of inputs, and labels."""
    ends = NUM_INPUTS + NUM_CLASSES
    width = max(int((-ends + (ends**2 + 4 * size) ** 0.5) / 2), 1)
    widths = (NUM_INPUTS, width, width, NUM_CLASSES)
    keys = jr.split(jr.key(0), len(widths))
    params = [
        jr.normal(k, (m, n), jnp.float32) / m**0.5
        for k, m, n in zip(keys[:-1], widths[:-1], widths[1:], strict=True)
    ]
    x = jr.normal(keys[-1], (NUM_EXAMPLES, NUM_INPUTS), jnp.float32)
    return params, x, jnp.arange(NUM_EXAMPLES) % NUM_CLASSES


def loss(params: Any, x: Any, y: Any) -> jax.Array:
    """Mean cross-entropy."""
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    logits = x @ params[-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def pass_flops(params: Any) -> float:
    """FLOPs of the matrix products in one `jvp` of `value_and_grad`.

    A layer x w has three products of the same size, x w, xᵀg and g wᵀ, and each of them
    has two products in its tangent. Each product costs 2 b m n. The inputs are
    constant, so the first layer has no g wᵀ, and only one product in each tangent.
    """
    first, *others = (2.0 * NUM_EXAMPLES * w.size for w in params)
    return (2 + 2) * first + (3 + 6) * sum(others)
