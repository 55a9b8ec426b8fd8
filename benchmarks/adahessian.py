"""A step of AdaHessian and of Sophia, from the batch to the new weights.

Beside the one pass that makes loss, gradient and a Hessian-vector product; beside
optax's Sophia; and beside AdaHessian in PyTorch where `torch` and one of its ports of
the authors' code (`torch_optimizer`, `pytorch_optimizer`) can be imported.
"""

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import optkit as ok
from optkit._tree import signs

from .measure import Candidate, Row, as_rows, compiled, repeated, timed
from .network import loss, make_network

TORCH_PORTS = {"torch_optimizer": "Adahessian", "pytorch_optimizer": "AdaHessian"}


def run(size: int, rounds: int) -> list[list[Row]]:
    """AdaHessian: tables against the pass, optax's Sophia, and PyTorch."""
    params, x, y = make_network(size)
    ours = _with_diag("ok.adahessian", ok.adahessian(0.1), params, x, y)
    tx = ok.with_hutchinson(ok.adahessian(0.1), key=jr.key(1))
    wrapped = _with_objective("ok.with_hutchinson(ok.adahessian)", tx, params, x, y)
    references = [
        _one_pass(params, x, y),
        _optax_sophia(1, params, x, y),
        *_torch_steps(params, x, y),
    ]
    return _against_each(references, [ours, wrapped], rounds)


def run_sophia(size: int, rounds: int) -> list[list[Row]]:
    """Sophia: tables against the pass, and optax's at equal intervals."""
    params, x, y = make_network(size)
    tx = ok.sophia(0.01, update_interval=1)
    every = _with_diag("ok.sophia, K = 1", tx, params, x, y)
    tx = ok.with_hutchinson(ok.sophia(0.01), key=jr.key(1), update_interval=10)
    tenth = _with_objective("ok.with_hutchinson(ok.sophia), K = 10", tx, params, x, y)
    at_one = [_one_pass(params, x, y), _optax_sophia(1, params, x, y)]
    at_ten = [_optax_sophia(10, params, x, y)]
    return [
        *_against_each(at_one, [every], rounds),
        *_against_each(at_ten, [tenth], 10 * rounds, mean_of=10),
    ]


def _against_each(
    references: list[Candidate], ours: list[Candidate], rounds: int, mean_of: int = 1
) -> list[list[Row]]:
    """All timed in the same rounds; a table for each reference."""
    times = timed([*references, *ours], rounds)
    times = times.reshape(rounds // mean_of, mean_of, -1).mean(axis=1)
    first = len(references)
    tables = []
    for i, reference in enumerate(references):
        columns = [i, *range(first, first + len(ours))]
        tables.append(as_rows([reference, *ours], times[:, columns]))
    return tables


def _one_pass(params: Any, x: Any, y: Any) -> Candidate:
    """What a step cannot do without: loss, gradient and one product with H."""
    z = signs(jr.key(2), params)

    def pass_(p: Any) -> Any:
        return jax.jvp(lambda p: jax.value_and_grad(loss)(p, x, y), (p,), (z,))

    return repeated("jvp of value_and_grad, ready probe", [pass_], (params,))


def _with_diag(name: str, tx: Any, params: Any, x: Any, y: Any) -> Candidate:
    """A step by `ok.value_grad_and_diag`; it draws its own probe."""
    value_grad_diag = ok.value_grad_and_diag(loss)

    def step(carry: Any) -> Any:
        params, state, i, _ = carry
        key = jr.fold_in(jr.key(1), i)
        value, grads, diag = value_grad_diag(params, x, y, key=key)
        updates, state = tx.update(grads, state, params, hessian_diag=diag)
        return optax.apply_updates(params, updates), state, i + 1, value

    return _stepper(name, step, tx, params)


def _with_objective(name: str, tx: Any, params: Any, x: Any, y: Any) -> Candidate:
    """A step of an optimizer that is handed the objective."""

    def step(carry: Any) -> Any:
        params, state, i, _ = carry

        def objective(params: Any) -> Any:
            return loss(params, x, y)

        value, grads = jax.value_and_grad(objective)(params)
        updates, state = tx.update(grads, state, params, obj_fn=objective)
        return optax.apply_updates(params, updates), state, i + 1, value

    return _stepper(name, step, tx, params)


def _optax_sophia(interval: int, params: Any, x: Any, y: Any) -> Candidate:
    """Optax's Sophia-H; in the steps between, it makes no pass either."""
    tx = optax.contrib.sophia(0.01, update_interval=interval)
    name = f"optax.contrib.sophia, K = {interval}"
    return _with_objective(name, tx, params, x, y)


def _stepper(name: str, step: Callable[[Any], Any], tx: Any, params: Any) -> Candidate:
    """A candidate from a step of (params, state, count, loss), all donated."""
    params = jax.tree.map(jnp.copy, params)
    carry = params, tx.init(params), jnp.zeros([], jnp.int32), jnp.zeros([])
    return compiled(name, step, jax.tree.map(jnp.copy, carry))


def _torch_steps(params: Any, x: Any, y: Any) -> Iterator[Candidate]:
    """AdaHessian of each PyTorch port that can be imported, on the same network."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        print("Without PyTorch: `torch` cannot be imported.")
        return
    for module, cls in TORCH_PORTS.items():
        try:
            optimizer = getattr(importlib.import_module(module), cls)
        except ImportError:
            print(f"Without {module}.{cls}: `{module}` cannot be imported.")
            continue
        yield _torch_step(torch, f"{module}.{cls}", optimizer, params, x, y)


def _torch_step(
    torch: Any, name: str, optimizer: Any, params: Any, x: Any, y: Any
) -> Candidate:
    weights = [torch.tensor(np.asarray(w), requires_grad=True) for w in params]
    inputs, labels = torch.tensor(np.asarray(x)), torch.tensor(np.asarray(y)).long()
    tx = optimizer(weights, lr=0.1)

    def step(carry: Any) -> Any:
        hidden = inputs
        for w in weights[:-1]:
            hidden = torch.tanh(hidden @ w)
        value = torch.nn.functional.cross_entropy(hidden @ weights[-1], labels)
        value.backward(create_graph=True)
        tx.step()
        for w in weights:
            w.grad = None  # breaks the cycle that keeps the graph alive
        value.item()
        return carry

    return Candidate(name, step, ())
