"""How the time of a step changes with the number of devices, for the same total work.

On a machine with one device, a separate process makes eight virtual devices. They share
the cores of the processor, so no step can get faster than on one; the job then measures
the cost of splitting and communicating. On real devices it measures the speed-up.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import optkit as ok

from .measure import CLOCKS, Candidate, choose_clock, clock, compiled, measure
from .network import loss, make_network
from .report import Done, Job, Line, Plot, Result, Session, load, save

COUNTS = (1, 2, 8)
WINDOW = 32
NAMES = {
    "Adan, parameters split": "adan",
    f"M-FAC, window {WINDOW} split": "mfac",
    "AdaHessian, batch split": "adahessian",
}


def run(size: int, rounds: int) -> Result:
    """Measures on the devices of the machine, or in a process with virtual ones."""
    if len(jax.devices()) > 1:
        return measured(size, rounds)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "devices.json"
        flags = f"--xla_force_host_platform_device_count={COUNTS[-1]}"
        given = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": given}
        words = [str(path), str(size), str(rounds), "--clock", clock()]
        subprocess.run(
            [sys.executable, "-m", "benchmarks.devices", *words],
            env=environment,
            cwd=Path(__file__).parent.parent,
            check=True,
        )
        return load(path).done[0].result


def measured(size: int, rounds: int) -> Result:
    """Times each optimizer, with all numbers of devices in the same rounds."""
    counts = [count for count in COUNTS if count <= len(jax.devices())]
    makers = {"adan": _adan, "mfac": _mfac, "adahessian": _adahessian}
    tables, lines = [], []
    for title, name in NAMES.items():
        candidates = [makers[name](size, _mesh(count), count) for count in counts]
        table = measure(candidates, rounds).table(title, candidates[0].name)
        tables.append(table)
        ratios = [row.ratio for row in table.rows]
        lines.append(Line(title, "ours", counts, ratios))
    plot = Plot(
        "devices",
        "Time of a step for the same total work",
        "devices",
        "time, relative to one device",
        lines,
        y_log=False,
    )
    kind = jax.devices()[0].device_kind
    remark = f"{len(jax.devices())} devices ({kind}), {os.cpu_count()} cores."
    return Result(tables, plots=[plot], remarks=[remark])


def main(argv: list[str] | None = None) -> int:
    """Measures and writes the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices")
    parser.add_argument("path", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("rounds", type=int)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args(argv)
    choose_clock(options.clock)
    result = measured(options.size, options.rounds)
    save(
        Session("", options.clock, [Done("devices", 0, 0.0, result)], 0.0), options.path
    )
    return 0


def _mesh(count: int) -> Mesh:
    devices = np.array(jax.devices()[:count])
    return Mesh(devices, ("shard",), axis_types=(AxisType.Auto,))


def _adan(size: int, mesh: Mesh, count: int) -> Candidate:
    tx = ok.optim.adan(1e-3)
    grads = _split(_leaves(size), mesh)
    params = _split(jax.tree.map(jnp.ones_like, _leaves(size)), mesh)

    def step(carry: Any) -> Any:
        params, state, grads = carry
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, grads

    return compiled(_name(count), step, (params, jax.jit(tx.init)(params), grads))


def _mfac(size: int, mesh: Mesh, count: int) -> Candidate:
    tx = ok.optim.scale_by_mfac(WINDOW, 1e-3)
    grads = _split(_leaves(size), mesh)
    state = jax.jit(tx.init)(grads)
    window = _split(state.window, mesh, axis=1)
    whole = jax.device_put(
        state._replace(window=()), NamedSharding(mesh, PartitionSpec())
    )

    def step(carry: Any) -> Any:
        state, grads = carry
        updates, state = tx.update(grads, state)
        return state, jax.tree.map(lambda g, u: -g + 1e-3 * u, grads, updates)

    return compiled(_name(count), step, (whole._replace(window=window), grads))


def _adahessian(size: int, mesh: Mesh, count: int) -> Candidate:
    params, x, y = make_network(size // 4)
    tx = ok.optim.adahessian(0.1)
    value_grad_diag = ok.value_grad_and_diag(loss)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    state = jax.device_put(tx.init(params), NamedSharding(mesh, PartitionSpec()))
    x, y = _split((x, y), mesh)

    def step(carry: Any) -> Any:
        params, state, x, y, i = carry
        key = jr.fold_in(jr.key(1), i)
        _, grads, diag = value_grad_diag(params, x, y, key=key)
        updates, state = tx.update(grads, state, params, hessian_diag=diag)
        return optax.apply_updates(params, updates), state, x, y, i + 1

    i = jax.device_put(jnp.zeros([], jnp.int32), NamedSharding(mesh, PartitionSpec()))
    copied = jax.tree.map(jnp.copy, (params, state))
    return compiled(_name(count), step, (*copied, x, y, i))


def _leaves(size: int) -> Any:
    """Four leaves whose first axis is divisible by every number of devices."""
    rows = COUNTS[-1] * max(size // (4 * 1000 * COUNTS[-1]), 1)
    keys = jr.split(jr.key(0), 4)
    return {str(i): jr.normal(k, (rows, 1000), jnp.float32) for i, k in enumerate(keys)}


def _split(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    spec = PartitionSpec(*[None] * axis, "shard")
    return jax.device_put(tree, NamedSharding(mesh, spec))


def _name(count: int) -> str:
    return f"{count} device" + ("s" if count > 1 else "")


JOB = Job(
    title="Scaling with the number of devices",
    run=run,
    size=4_000_000,
    unit="parameters for Adan and M-FAC, a quarter of that for AdaHessian",
    rounds=10,
    reading=(
        "Virtual devices share the cores of one processor. With two cores, one device "
        "already uses both, so more devices cannot make a step faster; a ratio of 1 "
        "means that splitting costs nothing. Adan exchanges nothing, M-FAC a row of "
        "its Gram matrix, and AdaHessian its gradient and diagonal."
    ),
)

if __name__ == "__main__":
    sys.exit(main())
