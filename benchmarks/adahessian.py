"""A step of AdaHessian and of Sophia, from the batch to the new weights.

They are compared with the pass that computes the loss, the gradient and one
Hessian-vector product; with optax's Sophia; and with AdaHessian in PyTorch if `torch`
and a port of the authors' code (`torch_optimizer`, `pytorch_optimizer`) are installed.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import optkit as ok
from optkit._vector import signs

from .machine import floor
from .measure import Candidate, compiled, in_turn, measure
from .network import loss, make_network, pass_flops
from .peers import peer
from .report import Job, Result, Role, Table, at_most
from .torch_peers import on_device, synchronised

TORCH_PORTS = {"torch_optimizer": "Adahessian", "pytorch_optimizer": "AdaHessian"}
AUTHORS = "torch_optimizer.Adahessian"  # the closest port; the other is faster
PASS = "jvp of value_and_grad, ready probe"
ADAHESSIAN = "ok.optim.adahessian"
WRAPPED = "ok.optim.with_hutchinson(ok.optim.adahessian)"
SOPHIA = "ok.optim.sophia, K = 1"
TENTH = "ok.optim.with_hutchinson(ok.optim.sophia), K = 10"


def run(size: int, rounds: int) -> Result:
    """Compares AdaHessian with the pass, with optax's Sophia, and with PyTorch."""
    params, x, y = make_network(size)
    tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(1))
    in_torch = list(_torch_steps(params, x, y))
    candidates = [
        one_pass(params, x, y),
        optax_sophia(1, params, x, y),
        *in_torch,
        with_diag(ADAHESSIAN, ok.optim.adahessian(0.1), params, x, y),
        _with_objective(WRAPPED, tx, params, x, y),
    ]
    timing = measure(candidates, rounds)
    counted = floor(flops=pass_flops(params))

    def against(reference: Candidate) -> Any:
        names = list(dict.fromkeys([reference.name, PASS, ADAHESSIAN, WRAPPED]))
        return timing.table(f"Against {reference.name}", reference.name, names, counted)

    to_pass, to_sophia, *to_torch = map(against, [*candidates[:2], *in_torch])
    targets = [
        at_most(
            1.15,
            to_pass.row(ADAHESSIAN),
            "A step of `ok.optim.adahessian` takes at most 1.15 × the time of one "
            "`jvp` of `value_and_grad` with a ready probe",
            _ELEMENTWISE,
        ),
        at_most(
            0.9,
            to_sophia.row(ADAHESSIAN),
            "A step of `ok.optim.adahessian` takes at most 0.9 × the time of optax's "
            "Sophia with `update_interval=1`",
            _ELEMENTWISE,
        ),
    ]
    targets += [
        at_most(
            0.7,
            table.row(ADAHESSIAN),
            "A step of `ok.optim.adahessian` takes at most 0.7 × the time of "
            f"`{table.reference}`, the authors' code in PyTorch",
            f"The pass alone, with a ready probe, already takes "
            f"{table.row(PASS).ratio:.2f} × the time of the PyTorch step. "
            f"{_ELEMENTWISE}",
        )
        for table in [t for t in to_torch if AUTHORS in t.reference] or [_absent()]
    ]
    return Result([to_pass, to_sophia, *to_torch], targets)


def run_sophia(size: int, rounds: int) -> Result:
    """Compares Sophia with the pass, and with optax's Sophia at equal intervals."""
    params, x, y = make_network(size)
    tx = ok.optim.with_hutchinson(
        ok.optim.sophia(0.01), key=jr.key(1), update_interval=10
    )
    every = [
        one_pass(params, x, y),
        optax_sophia(1, params, x, y),
        with_diag(SOPHIA, ok.optim.sophia(0.01, update_interval=1), params, x, y),
    ]
    tenth = [
        optax_sophia(10, params, x, y),
        _with_objective(TENTH, tx, params, x, y),
    ]
    timing = measure(every, rounds)
    counted = floor(flops=pass_flops(params))
    tables = [
        timing.table(f"Against {every[i].name}", every[i].name, names, counted)
        for i, names in enumerate(([PASS, SOPHIA], [every[1].name, SOPHIA]))
    ]
    lazy = measure(tenth, 10 * max(rounds // 2, 1)).mean_of(10)
    tables.append(
        lazy.table("One refresh in ten steps, mean over ten steps", tenth[0].name)
    )
    return Result(tables)


def one_pass(params: Any, x: Any, y: Any) -> Candidate:
    """The work that no step can avoid: loss, gradient and one product with H."""

    # The probe is an argument. If it were a constant, the compiler would multiply the
    # inputs with it in advance, and the pass would be one product short.
    def pass_(p: Any, z: Any) -> Any:
        return jax.jvp(lambda p: jax.value_and_grad(loss)(p, x, y), (p,), (z,))

    return in_turn(PASS, [pass_], (params, signs(jr.key(2), params)), "floor")


def with_diag(name: str, tx: Any, params: Any, x: Any, y: Any) -> Candidate:
    """A step with `ok.value_grad_and_diag`, which draws its own probe."""
    value_grad_diag = ok.value_grad_and_diag(loss)

    def step(carry: Any) -> Any:
        params, state, i, _ = carry
        key = jr.fold_in(jr.key(1), i)
        value, grads, diag = value_grad_diag(params, x, y, key=key)
        updates, state = tx.update(grads, state, params, hessian_diag=diag)
        return optax.apply_updates(params, updates), state, i + 1, value

    return _stepper(name, step, tx, params, "ours")


def _with_objective(
    name: str, tx: Any, params: Any, x: Any, y: Any, role: Role = "ours"
) -> Candidate:
    """A step of an optimizer that takes the objective."""

    def step(carry: Any) -> Any:
        params, state, i, _ = carry

        def objective(params: Any) -> Any:
            return loss(params, x, y)

        value, grads = jax.value_and_grad(objective)(params)
        updates, state = tx.update(grads, state, params, obj_fn=objective)
        return optax.apply_updates(params, updates), state, i + 1, value

    return _stepper(name, step, tx, params, role)


def optax_sophia(interval: int, params: Any, x: Any, y: Any) -> Candidate:
    """Optax's Sophia-H, which also skips the pass between refreshes."""
    tx = optax.contrib.sophia(0.01, update_interval=interval)
    name = f"optax.contrib.sophia, K = {interval}"
    return _with_objective(name, tx, params, x, y, "peer")


def _stepper(
    name: str, step: Callable[[Any], Any], tx: Any, params: Any, role: Role
) -> Candidate:
    """A candidate whose step maps (params, state, count, loss) to the same, donated."""
    params = jax.tree.map(jnp.copy, params)
    carry = params, tx.init(params), jnp.zeros([], jnp.int32), jnp.zeros([])
    return compiled(name, step, jax.tree.map(jnp.copy, carry), role)


def _torch_steps(params: Any, x: Any, y: Any) -> Iterator[Candidate]:
    """AdaHessian from each PyTorch port that is installed, on the same network."""
    torch = peer("torch")
    # The optimizer needs a graph of the gradient; the reference cycle is broken below.
    warnings.filterwarnings("ignore", message="Using backward.* with create_graph")
    for module, cls in TORCH_PORTS.items() if torch else ():
        port = peer(module)
        if port is not None:
            name = f"{module}.{cls}"
            yield _torch_step(torch, name, getattr(port, cls), params, x, y)


def _torch_step(
    torch: Any, name: str, optimizer: Any, params: Any, x: Any, y: Any
) -> Candidate:
    def tensor(array: Any) -> Any:
        return on_device(torch, torch.tensor(np.asarray(array)))

    weights = [tensor(w).requires_grad_() for w in params]
    inputs, labels = tensor(x), tensor(y).long()
    tx = optimizer(weights, lr=0.1)

    def step() -> None:
        hidden = inputs
        for w in weights[:-1]:
            hidden = torch.tanh(hidden @ w)
        value = torch.nn.functional.cross_entropy(hidden @ weights[-1], labels)
        value.backward(create_graph=True)
        tx.step()
        for w in weights:
            w.grad = None  # breaks the cycle that would keep the graph alive
        value.item()

    return Candidate(name, synchronised(torch, step), (), "peer")


def _absent() -> Any:
    """A table without rows, for the target if the peer is not installed."""
    return Table("", AUTHORS, [])


_ELEMENTWISE = (
    "The rest of a step is elementwise work: drawing the probe, multiplying it with "
    "its Hessian product, and an update that reads and writes six trees. This work "
    "does not shrink with the batch, so its share depends on how fast the machine "
    "multiplies matrices compared with how fast it moves memory."
)
_NETWORK = "float32 weights of a tanh network, 784 inputs, 512 examples"

JOB = Job(
    title="A step of AdaHessian, from the batch to the new weights",
    run=run,
    size=1_800_000,
    unit=_NETWORK,
    reading=(
        "The Hessian diagonal comes from the same pass as the gradient, so a step "
        "costs that pass plus some elementwise work. `ok.optim.with_hutchinson` does "
        "the same behind optax's interface, where the gradient and the curvature need "
        "two passes. PyTorch builds the graph of the gradient in every step and goes "
        "through it twice. The floor counts only the matrix products."
    ),
)
JOB_SOPHIA = Job(
    title="A step of Sophia, from the batch to the new weights",
    run=run_sophia,
    size=1_800_000,
    unit=_NETWORK,
    reading=(
        "With a refresh in every step, the picture is the same as for AdaHessian. With "
        "one refresh in ten steps, both libraries skip the pass in the other nine, "
        "which leaves a gradient and an update, and the ratio moves towards 1."
    ),
)
