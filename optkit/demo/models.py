"""A small network: a pytree of weights, and pure functions of it.

It is smooth (tanh, not relu), so that the curvature which second-order optimizers use
exists everywhere.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import jax.random as jr
import optax
from jaxtyping import Array, Float32, Key

from .data import NUM_CLASSES, NUM_PIXELS, Batch


class Layer(NamedTuple):
    """An affine map."""

    weight: Float32[Array, "inputs outputs"]
    bias: Float32[Array, " outputs"]


Mlp: TypeAlias = list[Layer]
"""Affine maps with a tanh between them."""


def init_mlp(
    *,
    key: Key[Array, ""],
    widths: Sequence[int] = (NUM_PIXELS, 64, NUM_CLASSES),
) -> Mlp:
    """Draws weights of variance 1 / inputs; the biases are zero.

    Args:
        key: Random key.
        widths: Widths of the input, of each hidden layer and of the output.

    Returns:
        float32 weights, even where x64 is enabled.
    """
    layers = list(pairwise(widths))
    keys = jr.split(key, len(layers))
    return [
        Layer(
            jr.normal(k, (inputs, outputs), jnp.float32) * inputs**-0.5,
            jnp.zeros(outputs, jnp.float32),
        )
        for k, (inputs, outputs) in zip(keys, layers, strict=True)
    ]


def logits(
    params: Mlp, images: Float32[Array, "n inputs"]
) -> Float32[Array, "n outputs"]:
    """Applies the network to each row."""
    *hidden, last = params
    x = images
    for layer in hidden:
        x = jnp.tanh(x @ layer.weight + layer.bias)
    return x @ last.weight + last.bias


def loss(params: Mlp, batch: Batch) -> Float32[Array, ""]:
    """Mean softmax cross-entropy over the batch."""
    per_example = optax.softmax_cross_entropy_with_integer_labels(
        logits(params, batch.images), batch.labels
    )
    return jnp.mean(per_example)


def accuracy(params: Mlp, batch: Batch) -> Float32[Array, ""]:
    """Share of the batch for which the largest logit is that of the label."""
    predicted = jnp.argmax(logits(params, batch.images), axis=-1)
    hits = predicted.astype(batch.labels.dtype) == batch.labels
    return jnp.mean(hits, dtype=jnp.float32)
