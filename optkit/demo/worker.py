"""One process of a distributed run: `python -m optkit.demo.worker`.

A launcher starts this same program in every process. Arrays are global: each process
holds the parts on its own devices, and XLA exchanges what a computation needs.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from .hlo import collectives
from .jobs import JOBS, Job, first_params, make_batches, probe_sum, step_key, whole_mesh


def main(argv: Sequence[str] | None = None) -> int:
    """Joins the other processes, trains with every optimizer, and writes the outcome.

    Args:
        argv: The command line without the program's name. Default: `sys.argv[1:]`.

    Returns:
        The exit code.
    """
    options = _make_parser().parse_args(argv)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.processes > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"localhost:{options.port}", options.processes, options.process
        )
    mesh = whole_mesh()
    with jax.set_mesh(mesh):
        found: dict[str, Any] = {
            name: train(make(), mesh, options.steps) for name, make in JOBS.items()
        }
        probes = jax.jit(probe_sum)(first_params(mesh)[0].weight, step_key(0))
    if options.process == 0:
        found = {"runs": found, "probes": int(probes), "devices": jax.device_count()}
        Path(options.out).write_text(json.dumps(found), encoding="utf-8")
    if options.processes > 1:
        jax.distributed.shutdown()
    return 0


def train(job: Job, mesh: Mesh, steps: int) -> dict[str, Any]:
    """Trains with one job.

    Args:
        job: From `jobs.JOBS`.
        mesh: The mesh of all devices, which is also the current one.
        steps: Number of steps.

    Returns:
        The losses, and the collective operations of a step.
    """
    batches = make_batches(mesh)
    state = job.init(first_params(mesh))
    shardings = jax.tree.map(lambda x: x.sharding, state)
    # The state keeps its shardings, so the compiled step accepts its own output.
    step = jax.jit(job.step, donate_argnums=0, out_shardings=(shardings, None))
    compiled = step.lower(state, batches(0), step_key(0)).compile()
    losses = []
    for i in range(steps):
        state, loss = compiled(state, batches(i), step_key(i))
        losses.append(float(loss))
    return {"losses": losses, "collectives": collectives(compiled.as_text())}


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m optkit.demo.worker")
    for name in ("processes", "process", "devices", "steps", "port"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", required=True)
    return parser


if __name__ == "__main__":
    sys.exit(main())
