"""Training a small network on many devices: what every process of a run does.

Weights, states and batches are split over all devices along their first axis, as in
fully sharded data parallelism: the loss gathers the weights, and XLA sums the
gradients.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

import optkit as ok

from .data import Batch
from .models import Layer, Mlp, loss as loss_of

WIDTHS = (32, 64, 8)
NUM_EXAMPLES = 512
BATCH_SIZE = 64
SPLIT = PartitionSpec("devices")
WHOLE = PartitionSpec()


class Job(NamedTuple):
    """An optimizer together with the data that it needs in a step."""

    init: Callable[[PyTree], PyTree]  # params -> state, which contains them
    step: Callable[[PyTree, Any, Array], tuple[PyTree, Array]]  # -> state, loss


class Halves(NamedTuple):
    """Two batches: one to train on, and one to judge by (for bilevel problems)."""

    train: Batch
    validation: Batch


def whole_mesh() -> Mesh:
    """All devices of all processes along one axis."""
    return jax.make_mesh((jax.device_count(),), ("devices",), (AxisType.Auto,))


def gathered_loss(params: Mlp, batch: Batch) -> Array:
    """The loss, for which each device gathers the weights before it uses them."""
    whole = jax.tree.map(lambda w: lax.with_sharding_constraint(w, WHOLE), params)
    return loss_of(whole, batch)


def by_gradient(
    tx: optax.GradientTransformation, loss: Callable[..., Array] = gathered_loss
) -> Job:
    """Trains with a transform that needs only the gradient."""

    def init(params: PyTree) -> PyTree:
        return params, tx.init(params)

    def step(state: PyTree, batch: Halves, key: Array) -> tuple[PyTree, Array]:
        del key
        params, memory = state
        value, grads = jax.value_and_grad(loss)(params, batch.train)
        updates, memory = tx.update(grads, memory, params)
        return (optax.apply_updates(params, updates), memory), value

    return Job(init, step)


def by_diagonal(
    tx: optax.GradientTransformationExtraArgs,
    loss: Callable[..., Array] = gathered_loss,
) -> Job:
    """Trains with a transform that reads a Hessian diagonal from the same pass."""

    def init(params: PyTree) -> PyTree:
        return params, tx.init(params)

    def step(state: PyTree, batch: Halves, key: Array) -> tuple[PyTree, Array]:
        params, memory = state
        value_grad_diag = ok.value_grad_and_diag(loss)
        value, grads, diag = value_grad_diag(params, batch.train, key=key)
        updates, memory = tx.update(grads, memory, params, hessian_diag=diag)
        return (optax.apply_updates(params, updates), memory), value

    return Job(init, step)


def by_penalty() -> Job:
    """Learns a weight decay for each input from the loss of other examples."""

    def upper(x: Array, y: Mlp, batch: Halves) -> Array:
        del x
        return gathered_loss(y, batch.validation)

    def lower(x: Array, y: Mlp, batch: Halves) -> Array:
        decay = 1e-2 * jnp.exp(x)[:, None] * y[0].weight ** 2
        return gathered_loss(y, batch.train) + jnp.sum(decay)

    solver = ok.bilevel.f2sa(
        upper,
        lower,
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.2, momentum=0.9),
        penalty=10.0,
        inner_steps=2,
    )

    def init(params: Mlp) -> PyTree:
        return solver.init(jnp.zeros_like(params[0].weight[:, 0]), params)

    def step(state: PyTree, batch: Halves, key: Array) -> tuple[PyTree, Array]:
        del key
        state, info = solver.step(state, batch)
        return state, info.value

    return Job(init, step)


JOBS: dict[str, Callable[[], Job]] = {
    "adan": lambda: by_gradient(ok.optim.adan(0.01, weight_decay=0.02)),
    "adahessian": lambda: by_diagonal(ok.optim.adahessian(0.05, eps=1e-2)),
    "mfac": lambda: by_gradient(
        ok.optim.mfac(0.02, window=16, damping=0.1, momentum=0.9)
    ),
    "f2sa": by_penalty,
}


def first_params(mesh: Mesh) -> Mlp:
    """Initial weights, the same on any number of devices, split over them."""
    rng, split = np.random.default_rng(0), NamedSharding(mesh, SPLIT)

    def place(array: np.ndarray) -> Array:
        part = array.astype(np.float32)
        return jax.make_array_from_callback(array.shape, split, lambda at: part[at])

    return [
        Layer(
            place(rng.normal(size=(inputs, outputs)) * inputs**-0.5),
            place(np.zeros(outputs)),
        )
        for inputs, outputs in pairwise(WIDTHS)
    ]


def make_batches(mesh: Mesh) -> Callable[[int], Halves]:
    """Batches with the labels of a linear teacher; each process has its own rows.

    Args:
        mesh: The mesh of all devices.

    Returns:
        A function from the step to its batches.
    """
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(NUM_EXAMPLES, WIDTHS[0])).astype(np.float32)
    teacher = rng.normal(size=(WIDTHS[0], WIDTHS[-1]))
    labels = np.argmax(inputs @ teacher, axis=-1).astype(np.int32)
    split = NamedSharding(mesh, SPLIT)

    def place(rows: np.ndarray) -> Batch:
        # A process provides only the rows of its own devices, as a data loader would.
        mine = np.split(rows, jax.process_count())[jax.process_index()]
        return Batch(
            jax.make_array_from_process_local_data(split, inputs[mine]),
            jax.make_array_from_process_local_data(split, labels[mine]),
        )

    def batch(step: int) -> Halves:
        order = np.random.default_rng(step).permutation(NUM_EXAMPLES)
        return Halves(
            place(order[:BATCH_SIZE]), place(order[BATCH_SIZE : 2 * BATCH_SIZE])
        )

    return batch


def step_key(step: int) -> Array:
    """The key of a step, the same in every process."""
    return jr.fold_in(jr.key(1), step)


def probe_sum(leaf: Array, key: Array) -> Array:
    """A checksum of the random probe of a leaf, exact on any number of devices.

    For half the squared sum of all entries, z ∘ Hz is the sign z_i times the sum of all
    signs, so all values are integers.
    """

    def half_square(leaf: Array) -> Array:
        return jnp.sum(leaf) ** 2 / 2

    diag = ok.value_grad_and_diag(half_square)(leaf, key=key)[2].astype(jnp.int32)
    weights = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape) % 1009
    return jnp.sum(diag * weights)
