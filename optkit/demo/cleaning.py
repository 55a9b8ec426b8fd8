"""Data hyper-cleaning: finds wrong training labels with the help of clean digits.

Half of the training labels are replaced by random ones. The lower level fits a linear
classifier y to examples weighted by sigmoid(x_i); the upper level judges y on clean
validation digits:

    g(x, y) = mean_i sigmoid(x_i) loss_i(y) + c |y|²    f(x, y) = mean validation loss

A label that harms the validation loss loses its weight. Several seeds run side by side.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

import optkit as ok

from .data import NUM_CLASSES, NUM_PIXELS, Batch, Digits
from .models import Layer, accuracy, logits, loss

NUM_TRAIN = 3000
DECAY = 5e-3
"""The coefficient c of |y|². Of 1e-4, 1e-3, 5e-3 and 1e-2 it was the best on the
validation digits when training on the right labels alone."""
REFIT_STEPS = 400
NUM_POINTS = 20
"""How often a run reports its progress."""


class Task(NamedTuple):
    """The batch of the solvers; the labels of several seeds have a leading axis."""

    images: Float32[Array, "n 784"]
    labels: Int32[Array, "*seeds n"]  # half of them random
    validation: Batch  # clean


SEEDS_AXES = Task(images=None, labels=0, validation=None)  # pyright: ignore  # vmap's


class Cleaning(NamedTuple):
    """The outcome of one method; arrays have a leading axis of seeds."""

    weights: Float32[np.ndarray, "seeds n"]  # in [0, 1]
    validation_accuracy: Float32[
        np.ndarray, " seeds"
    ]  # of a classifier trained from zero
    test_accuracy: Float32[np.ndarray, " seeds"]  # of the same classifier
    auc: Float[np.ndarray, " seeds"]  # P(a right label outweighs a wrong one)
    seconds: float  # everything, for all seeds together
    steps: int


def corrupted(
    data: Digits, *, key: Key[Array, ""], num_seeds: int
) -> tuple[Task, Bool[Array, "seeds n"]]:
    """Splits the training digits and replaces half of their labels by random ones.

    Args:
        data: From `data.digits()`.
        key: Random key; each seed replaces other labels.
        num_seeds: Number of seeds.

    Returns:
        The task, and which labels are right (a tenth of the random ones are).
    """
    train, rest = (
        jax.tree.map(lambda a, s=s: a[s], data.train)
        for s in (slice(None, NUM_TRAIN), slice(NUM_TRAIN, None))
    )

    def labels(key: Array) -> Array:
        which, what = jr.split(key)
        is_new = jr.permutation(which, NUM_TRAIN) < NUM_TRAIN // 2
        new = jr.randint(what, (NUM_TRAIN,), 0, NUM_CLASSES, jnp.int32)
        return jnp.where(is_new, new, train.labels)

    drawn = jax.vmap(labels)(jr.split(key, num_seeds))
    return Task(train.images, drawn, rest), drawn == train.labels


def upper(x: Array, y: Layer, task: Task) -> Float32[Array, ""]:
    """Mean cross-entropy on the clean validation digits."""
    del x
    return loss([y], task.validation)


def lower(x: Array, y: Layer, task: Task) -> Float32[Array, ""]:
    """Weighted cross-entropy on the training digits, plus weight decay."""
    return _weighted(jax.nn.sigmoid(x), y, task)


def train_weighted(weights: Float32[Array, "seeds n"], task: Task) -> Layer:
    """Trains one classifier per seed from zero, with fixed weights."""
    return _train_weighted(weights, task, REFIT_STEPS)


def clean(
    solver: ok.Solver,
    task: Task,
    is_right: Bool[Array, "seeds n"],
    test: Batch,
    *,
    steps: int,
    report: Callable[[int, float, float], Any] = lambda step, loss, accuracy: None,
) -> Cleaning:
    """Learns the weights by a bilevel solver, then trains a classifier with them.

    Args:
        solver: A bilevel solver for `upper` and `lower`.
        task: From `corrupted`, with the labels of several seeds.
        is_right: The truth, from `corrupted`; used only after the last step.
        test: Test digits, which no choice depends on.
        steps: Number of steps of the weights.
        report: Called about `NUM_POINTS` times with the step and the means over the
            seeds of validation loss and accuracy.

    Returns:
        The weights and how good they are.
    """
    start = time.perf_counter()
    num_seeds = len(task.labels)
    x = jnp.zeros((num_seeds, NUM_TRAIN), jnp.float32)
    state = jax.jit(jax.vmap(solver.init))(x, _zeros(num_seeds))

    @jax.jit
    def advance(state: Any, task: Task, span: Array) -> Any:
        step = jax.vmap(solver.step, in_axes=(0, SEEDS_AXES))
        return jax.lax.fori_loop(
            span[0], span[1], lambda _, state: step(state, task)[0], state
        )

    points = np.linspace(0, steps, min(steps, NUM_POINTS) + 1).round().astype(np.int32)
    for span in np.stack([points[:-1], points[1:]], axis=-1):
        state = advance(state, task, span)
        mean = np.mean(_evaluate(state.y, task.validation), axis=-1)
        report(int(span[1]), float(mean[0]), float(mean[1]))
    weights = jax.nn.sigmoid(state.x)
    return judge(weights, task, is_right, test, start=start, steps=steps)


def judge(
    weights: Float32[Array, "seeds n"],
    task: Task,
    is_right: Bool[Array, "seeds n"],
    test: Batch,
    *,
    start: float,
    steps: int = 0,
) -> Cleaning:
    """Trains a classifier from zero with given weights, and tests it.

    Args:
        weights: Weights of the training examples.
        task: From `corrupted`.
        is_right: Which labels are right.
        test: The test digits.
        start: `time.perf_counter()` when the method started.
        steps: Number of steps that produced the weights.

    Returns:
        How good the weights are.
    """
    y = jax.block_until_ready(train_weighted(weights, task))
    seconds = time.perf_counter() - start
    rank = jax.vmap(_auc)(weights, is_right)
    return Cleaning(
        np.asarray(weights),
        np.asarray(_evaluate(y, task.validation)[1]),
        np.asarray(_evaluate(y, test)[1]),
        np.asarray(rank),
        seconds,
        steps,
    )


def _weighted(weights: Array, y: Layer, task: Task) -> Array:
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits([y], task.images), task.labels
    )
    return jnp.mean(weights * losses) + DECAY * jnp.sum(y.weight**2)


@jax.jit(static_argnums=2)
def _train_weighted(weights: Array, task: Task, steps: int) -> Layer:
    tx = optax.sgd(0.1, momentum=0.9)

    def train(weights: Array, task: Task) -> Layer:
        def step(_: Any, carry: Any) -> Any:
            y, state = carry
            updates, state = tx.update(jax.grad(_weighted, 1)(weights, y, task), state)
            return optax.apply_updates(y, updates), state

        y = _zeros()
        return jax.lax.fori_loop(0, steps, step, (y, tx.init(y)))[0]

    return jax.vmap(train, in_axes=(0, SEEDS_AXES))(weights, task)


@jax.jit
def _evaluate(y: Layer, batch: Batch) -> Float32[Array, "2 seeds"]:
    """Loss and accuracy of each seed."""

    def one(y: Layer) -> Array:
        return jnp.stack([loss([y], batch), accuracy([y], batch)])

    return jax.vmap(one, out_axes=-1)(y)


def _auc(weights: Array, is_right: Array) -> Array:
    """The share of (right, wrong) pairs in which the right label has more weight.

    Ties count one half. This is the Mann-Whitney statistic, over all pairs at once.
    """
    ordered = jnp.sort(jnp.where(is_right, jnp.inf, weights))
    num_wrong = jnp.sum(~is_right)
    below = jnp.searchsorted(ordered, weights, side="left")
    up_to = jnp.minimum(jnp.searchsorted(ordered, weights, side="right"), num_wrong)
    wins = jnp.sum(jnp.where(is_right, (below + up_to) / 2, 0.0))
    return wins / (num_wrong * jnp.sum(is_right))


def _zeros(*shape: int) -> Layer:
    return Layer(
        jnp.zeros((*shape, NUM_PIXELS, NUM_CLASSES), jnp.float32),
        jnp.zeros((*shape, NUM_CLASSES), jnp.float32),
    )
