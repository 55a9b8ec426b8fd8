"""A step of Adan, compared with optax, PyTorch and the bytes that it must move."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import optkit as ok

from .machine import floor
from .measure import Candidate, compiled, measure
from .peers import peer
from .report import Job, Result, Role, at_most
from .torch_peers import on_device, synchronised

NUM_LEAVES = 5
TREES_MOVED = 11  # read p, g, m, v, n, g_prev; write p, m, v, n, g_prev
STREAM = "streaming the same bytes"


def run(size: int, rounds: int) -> Result:
    """Tables for `size` float32 parameters in five leaves."""
    grads = gradients(size)
    candidates = [
        step("optax.adan", optax.adan(1e-3), grads, "peer"),
        step("ok.optim.adan", ok.optim.adan(1e-3), grads),
        step("optax.adan, decay", optax.adan(1e-3, weight_decay=0.02), grads, "peer"),
        step(
            "ok.optim.adan, proximal decay",
            ok.optim.adan(1e-3, weight_decay=0.02),
            grads,
        ),
        _stream(grads),
        *_in_torch(grads),
    ]
    timing = measure(candidates, rounds)
    counted = floor(num_bytes=adan_bytes(size))
    plain = timing.table(
        "No weight decay",
        "optax.adan",
        ["optax.adan", "ok.optim.adan", "pytorch_optimizer.Adan", STREAM],
        counted,
    )
    names = ["optax.adan, decay", "ok.optim.adan, proximal decay", STREAM]
    decayed = timing.table("Weight decay", names[0], names, counted)
    targets = [
        at_most(
            1.05,
            plain.row("ok.optim.adan"),
            "A step of `ok.optim.adan` takes at most 1.05 × the time of `optax.adan`",
            "Both make the same passes over memory; they differ in how XLA groups the "
            "outputs.",
        )
    ]
    return Result([plain, decayed], targets)


def gradients(size: int) -> dict[str, Any]:
    """About `size` float32 entries in five leaves, none of which is empty."""
    leaf = max(size // NUM_LEAVES, 1)
    shape = (max(leaf // 1000, 1), min(leaf, 1000))
    keys = jr.split(jr.key(0), NUM_LEAVES)
    return {str(i): jr.normal(key, shape, jnp.float32) for i, key in enumerate(keys)}


def adan_bytes(size: int) -> float:
    """The bytes that a step has to read and write."""
    return 4.0 * TREES_MOVED * size


def step(
    name: str, tx: optax.GradientTransformation, grads: Any, role: Role = "ours"
) -> Candidate:
    """Computes and applies the update; parameters and state are donated."""
    params = jax.tree.map(jnp.ones_like, grads)

    def one(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    carry = params, tx.init(params), jax.tree.map(jnp.copy, grads)
    return compiled(name, one, carry, role)


def _stream(grads: Any) -> Candidate:
    """y = c x over 11/2 trees, in place: the same memory traffic as one step."""
    half = jax.tree.map(lambda g: g[: g.shape[0] // 2] + 0, grads)
    trees = [jax.tree.map(jnp.copy, grads) for _ in range(TREES_MOVED // 2)]
    scale = optax.tree.scale
    return compiled(STREAM, lambda x: scale(0.999, x), [*trees, half], "floor")


def _in_torch(grads: Any) -> Iterator[Candidate]:
    torch, port = peer("torch"), peer("pytorch_optimizer")
    if torch is None or port is None:
        return
    weights = []
    for g in jax.tree.leaves(grads):
        weight = on_device(torch, torch.ones(g.shape)).requires_grad_()
        weight.grad = on_device(torch, torch.tensor(np.asarray(g)))
        weights.append(weight)
    tx = port.Adan(weights, lr=1e-3)
    run = synchronised(torch, lambda: tx.step())
    yield Candidate("pytorch_optimizer.Adan", run, (), "peer")


JOB = Job(
    title="A step of Adan",
    run=run,
    size=25_000_000,
    unit="float32 parameters in five leaves",
    reading=(
        "Both libraries make the same passes over memory and take about the same time. "
        "The floor reads and writes each array once. On a CPU, XLA makes one pass for "
        "each output and reads some arrays more than once; this is the distance to the "
        "floor, and an optimizer written in JAX alone cannot close it. A GPU fuses the "
        "outputs into one pass. The weight decay of `ok.optim.adan` is proximal, as in "
        "the authors' code."
    ),
)
