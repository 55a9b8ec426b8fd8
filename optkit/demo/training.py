"""Training with several seeds at once, for any optax transform.

One key determines everything random: seed i of every optimizer starts from the same
weights and sees the same batches. The seeds run under one `jax.vmap`. The steps are a
compiled loop that returns to Python about fifty times, to evaluate and to report.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Key, PyTree

from .data import Batch, Digits
from .models import accuracy, init_mlp, loss

NUM_POINTS = 50
"""Points of a learning curve after the one at step 0."""


class Run(NamedTuple):
    """The learning curves of one optimizer, and their cost."""

    steps: Int[np.ndarray, " points"]  # 0, ..., the last step
    train_loss: Float32[np.ndarray, "points seeds"]  # over the whole training set
    test_accuracy: Float32[np.ndarray, "points seeds"]
    step_seconds: float  # training steps only, all seeds together
    total_seconds: float  # including initialisation, compilation, evaluation
    params: PyTree  # after the last step; seeds on the leading axis


def train(
    tx: optax.GradientTransformation,
    data: Digits,
    *,
    key: Key[Array, ""],
    steps: int,
    num_seeds: int = 5,
    batch_size: int = 64,
    report: Callable[[int, float, float], Any] = lambda step, loss, accuracy: None,
) -> Run:
    """Trains the network of `models.init_mlp` on the digits.

    Args:
        tx: Any optax transform. If its `update` takes `value`, `grad` or `value_fn`, as
            line searches and curvature estimates do, it gets them.
        data: From `data.digits()`.
        key: Random key; the same key gives the same run.
        steps: Number of steps, at least 1.
        num_seeds: Number of networks that train side by side.
        batch_size: Examples per step, drawn with replacement.
        report: Called at each point of the curves with the step and the means over the
            seeds of train loss and test accuracy.

    Returns:
        Curves with a point at step 0 and at most `NUM_POINTS` more, evenly spaced.
    """
    start = time.perf_counter()
    keys = jr.split(key, num_seeds)
    params, state = _init(tx, keys)
    points = np.linspace(0, steps, min(steps, NUM_POINTS) + 1).round().astype(np.int32)
    spans = np.stack([points[:-1], points[1:]], axis=-1)
    # Compiled ahead of time, so that no chunk's time includes the compilation.
    advance = _advance(tx, batch_size)
    advance = advance.lower(params, state, keys, data.train, spans[0]).compile()

    curves = []
    step_seconds = 0.0

    def look(step: int) -> None:
        curves.append(np.asarray(_evaluate(params, data)))
        report(step, *(float(mean) for mean in curves[-1].mean(axis=-1)))

    look(0)
    for span in spans:
        chunk_start = time.perf_counter()
        params, state = advance(params, state, keys, data.train, span)
        jax.block_until_ready((params, state))
        step_seconds += time.perf_counter() - chunk_start
        look(int(span[1]))
    train_loss, test_accuracy = np.stack(curves, axis=1)
    total_seconds = time.perf_counter() - start
    return Run(points, train_loss, test_accuracy, step_seconds, total_seconds, params)


def mean_and_std(
    values: Float[np.ndarray, "*points seeds"],
) -> tuple[Float[np.ndarray, "*points"], Float[np.ndarray, "*points"]]:
    """Mean and sample standard deviation over the seeds (0 for a single seed)."""
    ddof = min(1, values.shape[-1] - 1)
    with np.errstate(invalid="ignore"):  # a seed that diverged: inf - inf
        mean, std = values.mean(axis=-1), values.std(axis=-1, ddof=ddof)
    return np.asarray(mean), np.asarray(std)


def _init(tx: optax.GradientTransformation, keys: Array) -> tuple[PyTree, PyTree]:
    """Weights and optimizer state, one per seed."""

    def init(key: Array) -> tuple[PyTree, PyTree]:
        params = init_mlp(key=key)
        return params, tx.init(params)

    return jax.jit(jax.vmap(init))(keys)


def _advance(tx: optax.GradientTransformation, batch_size: int) -> Any:
    """Returns a jitted function that takes the steps `span[0], ..., span[1] - 1`.

    The span is data, not a shape: chunks of any length share one compilation.
    """
    tx = optax.with_extra_args_support(tx)

    def advance(params: PyTree, state: PyTree, key: Array, train: Batch, span: Array):
        def step(i: Array, carry: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            params, state = carry
            batch = _draw(train, batch_size, key=jr.fold_in(key, i))

            def value_fn(params: PyTree) -> Array:
                return loss(params, batch)

            value, grad = jax.value_and_grad(value_fn)(params)
            updates, state = tx.update(
                grad, state, params, value=value, grad=grad, value_fn=value_fn
            )
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(span[0], span[1], step, (params, state))

    return jax.jit(jax.vmap(advance, in_axes=(0, 0, 0, None, None)))


def _draw(train: Batch, size: int, *, key: Array) -> Batch:
    """Draws examples with replacement."""
    rows = jr.randint(key, (size,), 0, len(train.labels), jnp.int32)
    return Batch(train.images[rows], train.labels[rows])


@jax.jit
def _evaluate(params: PyTree, data: Digits) -> Float32[Array, "2 seeds"]:
    """Train loss and test accuracy of each seed."""

    def evaluate(params: PyTree) -> Array:
        return jnp.stack([loss(params, data.train), accuracy(params, data.test)])

    return jax.vmap(evaluate, out_axes=-1)(params)
