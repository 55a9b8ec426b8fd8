"""`python -m optkit distributed`: one training run on one process and on many.

Starts the processes of `optkit.demo.worker` on this machine, as the launcher of a
cluster would on many machines, and compares the losses.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from .hlo import Collective, total_bytes
from .terminal import INTERRUPTED, PROG, Parser, make_parser, whole_number

STEPS = 50
TIMEOUT = 900
TOLERANCE = 1e-5  # relative, of a loss: float32 sums are taken in another order
WORKER = "optkit.demo.worker"

DESCRIPTION = """\
Trains a small network with Adan, AdaHessian, M-FAC and F2SA: once on a single
process with one device, and once on several processes joined by jax.distributed,
each with several virtual CPU devices over which weights, optimizer states and
batches are split. Prints how far the losses of the two runs differ, and how many
bytes the devices exchange. Everything runs on this machine.
"""


class ProcessError(RuntimeError):
    """A process failed or did not end in time."""


class Row(NamedTuple):
    """One optimizer: one process against many."""

    optimizer: str
    difference: float  # the largest relative difference of a loss
    gathered: int  # bytes per step and device
    reduced: int
    other: int


def main(argv: Sequence[str]) -> int:
    """Trains in both ways and prints the table.

    Args:
        argv: The command line after `distributed`.

    Returns:
        The exit code: 0; 1 if losses or probes differ or a process failed; 130 after
        Ctrl-C.
    """
    parser = _make_parser()
    options = parser.parse_args(argv)
    try:
        one, many = launch(
            options.processes, options.devices, options.steps, options.timeout
        )
    except ProcessError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped by Ctrl-C; no process is left.", file=sys.stderr)
        return INTERRUPTED
    rows, is_same = compare(one, many)
    Console().print(as_table(rows, options.processes, options.devices, options.steps))
    print("Random probes:", "the same." if is_same else "different!")
    is_close = all(row.difference <= TOLERANCE for row in rows)
    print(
        f"Losses: {'all' if is_close else 'not all'} within {TOLERANCE:.0e} of those "
        f"on one process."
    )
    return 0 if is_same and is_close else 1


def launch(
    processes: int, devices: int, steps: int, timeout: int | float = TIMEOUT
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains on one process with one device and, at the same time, on many.

    Args:
        processes: How many processes join.
        devices: How many virtual CPU devices each of them has.
        steps: Steps of each optimizer.
        timeout: Seconds after which all processes are stopped.

    Returns:
        What the first process of each run wrote.

    Raises:
        ProcessError: If a process fails (with its last output) or takes too long.
    """
    port = _free_port()

    def command(processes: int, process: int, devices: int, out: Path) -> list[str]:
        given = {
            "processes": processes,
            "process": process,
            "devices": devices,
            "steps": steps,
            "port": port,
            "out": out,
        }
        words = [word for name, x in given.items() for word in (f"--{name}", str(x))]
        return [sys.executable, "-m", WORKER, *words]

    with tempfile.TemporaryDirectory() as folder:
        one, many = Path(folder, "one.json"), Path(folder, "many.json")
        group = [command(processes, i, devices, many) for i in range(processes)]
        run_together([command(1, 0, 1, one), *group], timeout)
        return json.loads(one.read_text()), json.loads(many.read_text())


def run_together(commands: list[list[str]], timeout: int | float) -> None:
    """Runs commands side by side; if one fails, the others are stopped.

    Args:
        commands: Programs with their arguments.
        timeout: Seconds for all of them together.

    Raises:
        ProcessError: If a command returns anything but 0, or the time is up.
    """
    end = time.monotonic() + timeout
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, f"{i}.log") for i in range(len(commands))]
        running: list[subprocess.Popen[bytes]] = []
        try:
            for command, log in zip(commands, logs, strict=True):
                with log.open("wb") as file:
                    process = subprocess.Popen(
                        command, stdout=file, stderr=file, env=_environment()
                    )
                running.append(process)
            _wait(running, logs, end, timeout)
        finally:
            for process in running:
                process.kill()
                process.wait()


def compare(one: Mapping[str, Any], many: Mapping[str, Any]) -> tuple[list[Row], bool]:
    """Returns one row per optimizer, and whether the random probes were the same."""
    rows = []
    for name, run in many["runs"].items():
        expected, found = (np.asarray(r["losses"]) for r in (one["runs"][name], run))
        # A loss that is not finite makes this NaN, which is not <= TOLERANCE.
        difference = float(np.max(np.abs(found - expected) / np.abs(expected)))
        sizes = total_bytes([Collective(*each) for each in run["collectives"]])
        gathered, reduced = sizes.pop("all-gather", 0), sizes.pop("all-reduce", 0)
        rows.append(Row(name, difference, gathered, reduced, sum(sizes.values())))
    return rows, one["probes"] == many["probes"]


def as_table(rows: list[Row], processes: int, devices: int, steps: int) -> Table:
    """Formats the rows for the terminal, in at most 80 columns."""
    table = Table(
        title=f"{steps} steps on {processes} processes x {devices} devices, against "
        f"1 x 1",
        caption="bytes: the results of XLA's collective operations, per step and "
        "device,\nwithout the branches that an ordinary step does not take.",
        caption_justify="left",
    )
    table.add_column("optimizer")
    for heading in ("loss differs by", "all-gather [B]", "all-reduce [B]", "other [B]"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.optimizer,
            f"{row.difference:.1e}",
            f"{row.gathered:,}",
            f"{row.reduced:,}",
            f"{row.other:,}",
        )
    return table


def _make_parser() -> Parser:
    parser = make_parser(f"{PROG} distributed", DESCRIPTION)
    for name, kind, default, text in (
        ("processes", whole_number(2, 64), 2, "how many processes join"),
        ("devices", whole_number(1, 8), 2, "virtual CPU devices of each process"),
        ("steps", whole_number(1, 10**6), STEPS, "steps of each optimizer"),
        (
            "timeout",
            whole_number(1, 10**6),
            TIMEOUT,
            "seconds until all processes are stopped",
        ),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{text} (default: {default})"
        )
    return parser


def _free_port() -> int:
    """Returns a port that no program listens on at the moment."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _environment() -> dict[str, str]:
    """Returns this process's environment without its own number of devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    # Programs this small take longer to compile than to run.
    return os.environ | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}


def _wait(
    running: list[subprocess.Popen[bytes]],
    logs: list[Path],
    end: float,
    timeout: int | float,
) -> None:
    """Waits until all have succeeded; raises as soon as one fails or time is up."""
    while (codes := [process.poll() for process in running]) != [0] * len(running):
        for i, code in enumerate(codes):
            if code:
                words = logs[i].read_text(errors="replace").strip()[-4000:]
                raise ProcessError(
                    f"process {i} of {len(running)} ended with exit code {code}; the "
                    f"others were stopped. Its output:\n{words}"
                )
        if time.monotonic() > end:
            left = [i for i, code in enumerate(codes) if code is None]
            raise ProcessError(
                f"processes {left} did not end within {timeout:g} seconds; all were "
                f"stopped. Pass a longer `--timeout` or fewer `--steps`."
            )
        time.sleep(0.05)
