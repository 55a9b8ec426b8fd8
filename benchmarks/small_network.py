"""A small network on digits, whose curvature fits into memory as a dense matrix.

64 pixels, one hidden layer, ten classes, trained for a while on real data, so that the
curvature has the decaying spectrum that is typical of such matrices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from sklearn.datasets import load_digits

import optkit as ok

NUM_PIXELS, NUM_CLASSES = 64, 10
STEPS = 50


class SmallNetwork(NamedTuple):
    """Weights, and the data on which they were trained."""

    params: dict[str, Any]
    images: jax.Array
    labels: jax.Array


def small_network(size: int, num_examples: int) -> SmallNetwork:
    """Trains about `size` float32 weights on `num_examples` examples."""
    width = max(size // (NUM_PIXELS + NUM_CLASSES), 1)
    pixels, targets = load_digits(return_X_y=True)
    images = jnp.asarray(np.asarray(pixels)[:num_examples] / 16.0, jnp.float32)
    labels = jnp.asarray(np.asarray(targets)[:num_examples], jnp.int32)
    keys = jr.split(jr.key(0))
    params = {
        "in": jr.normal(keys[0], (NUM_PIXELS, width), jnp.float32) / NUM_PIXELS**0.5,
        "out": jr.normal(keys[1], (width, NUM_CLASSES), jnp.float32) / width**0.5,
    }
    tx = optax.adam(1e-2)

    def step(_: Any, carry: Any) -> Any:
        params, state = carry
        grads = jax.grad(loss)(params, images, labels)
        updates, state = tx.update(grads, state)
        return optax.apply_updates(params, updates), state

    start = params, tx.init(params)
    params, _ = jax.jit(lambda c: jax.lax.fori_loop(0, STEPS, step, c))(start)
    return SmallNetwork(params, images, labels)


def logits(params: Any, images: Any) -> jax.Array:
    """The outputs of the network."""
    return jnp.tanh(images @ params["in"]) @ params["out"]


def loss(params: Any, images: Any, labels: Any) -> jax.Array:
    """Mean cross-entropy."""
    return head(logits(params, images), labels).mean()


def example_loss(params: Any, example: Any) -> jax.Array:
    """The loss of one example."""
    image, label = example
    return head(logits(params, image), label)


head = optax.softmax_cross_entropy_with_integer_labels


def gauss_newton(network: SmallNetwork) -> Any:
    """The Gauss-Newton matrix of the loss."""
    return ok.gauss_newton(
        logits,
        ok.SoftmaxCrossEntropy(),
        network.params,
        network.images,
        network.labels,
    )


def fisher(network: SmallNetwork) -> Any:
    """The empirical Fisher matrix, with one row per example."""
    batch = network.images, network.labels
    return ok.empirical_fisher(example_loss, network.params, batch)
