"""`python -m optkit distributed`: one training run on one process, and on many.

Starts the processes of `optkit.demo.worker` on this machine, as a cluster's launcher
would on many, and compares the losses.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from .hlo import Collective, total_bytes

STEPS = 50
TIMEOUT = 900
TOLERANCE = 1e-5  # of a loss, relative; float32 sums in another order
WORKER = "optkit.demo.worker"
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

DESCRIPTION = """\
Trains a small network with Adan, AdaHessian, M-FAC and F2SA on one process with
one device, and again on several processes that are joined by jax.distributed,
each with several virtual CPU devices, over which weights, optimizer states and
batches are split. Prints how far the losses are apart, and what devices exchange.
"""


class ProcessError(RuntimeError):
    """A process ended badly, or did not end in time."""


class Row(NamedTuple):
    """One optimizer: one process against many."""

    optimizer: str
    difference: float  # the largest of a loss, relative
    gathered: int  # bytes per step and device
    reduced: int
    other: int


def main(
    argv: Sequence[str], parser: ArgumentParser, whole: Callable[[int, int], Any]
) -> int:
    """Runs both, prints the table.

    Args:
        argv: the command line after `distributed`.
        parser: still without options.
        whole: what reads a whole number between two others.

    Returns:
        The exit code: 0, 1 if losses or probes differ or a process failed, or 130 if
        Ctrl-C ended the run.
    """
    _add_options(parser, whole)
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
        f"of one process."
    )
    return 0 if is_same and is_close else 1


def launch(
    processes: int, devices: int, steps: int, timeout: int | float = TIMEOUT
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains on one process with one device, and at the same time on many.

    Args:
        processes: how many join.
        devices: virtual CPU devices of each.
        steps: of each optimizer.
        timeout: seconds after which all are ended.

    Returns:
        What the first process of either run wrote.

    Raises:
        ProcessError: if one fails, with its last words, or takes too long.
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
    """Runs commands side by side; if one fails, the others are ended.

    Args:
        commands: programs and their arguments.
        timeout: seconds for all of them.

    Raises:
        ProcessError: if one returns something else than 0, or the time is over.
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
    """Makes one row per optimizer, and says whether the probes were the same."""
    rows = []
    for name, run in many["runs"].items():
        expected, found = (np.asarray(r["losses"]) for r in (one["runs"][name], run))
        # Not finite, or of another length, is not close.
        difference = float(np.max(np.abs(found - expected) / np.abs(expected)))
        sizes = total_bytes([Collective(*each) for each in run["collectives"]])
        gathered, reduced = sizes.pop("all-gather", 0), sizes.pop("all-reduce", 0)
        rows.append(Row(name, difference, gathered, reduced, sum(sizes.values())))
    return rows, one["probes"] == many["probes"]


def as_table(rows: list[Row], processes: int, devices: int, steps: int) -> Table:
    """The rows for a reader, in at most 80 columns."""
    table = Table(
        title=f"{steps} steps on {processes} processes x {devices} devices, against "
        f"1 x 1",
        caption="bytes: of the results of XLA's collective operations, on one device "
        "in one step;\nwithout branches that a usual step does not take.",
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


def _add_options(parser: ArgumentParser, whole: Callable[[int, int], Any]) -> None:
    parser.description = DESCRIPTION
    parser.formatter_class = RawDescriptionHelpFormatter
    for name, kind, default, text in (
        ("processes", whole(2, 64), 2, "how many join"),
        ("devices", whole(1, 8), 2, "virtual CPU devices of each process"),
        ("steps", whole(1, 10**6), STEPS, "updates per optimizer"),
        ("timeout", whole(1, 10**6), TIMEOUT, "seconds until all processes are ended"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{text} (default: {default})"
        )


def _free_port() -> int:
    """A port that no program listens on now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _environment() -> dict[str, str]:
    """This process's, but for a number of devices that is meant for itself."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
    # Programs this small are compiled for longer than they run.
    return os.environ | {"XLA_FLAGS": f"{flags} --xla_backend_optimization_level=0"}


def _wait(
    running: list[subprocess.Popen[bytes]],
    logs: list[Path],
    end: float,
    timeout: int | float,
) -> None:
    """Returns when all have ended well."""
    while (codes := [process.poll() for process in running]) != [0] * len(running):
        for i, code in enumerate(codes):
            if code:
                words = logs[i].read_text(errors="replace").strip()[-4000:]
                raise ProcessError(
                    f"process {i} of {len(running)} ended with code {code}; the "
                    f"others were ended. It said:\n{words}"
                )
        if time.monotonic() > end:
            left = [i for i, code in enumerate(codes) if code is None]
            raise ProcessError(
                f"processes {left} did not end within {timeout:g} seconds; all were "
                f"ended. Pass a longer `--timeout`, or fewer `--steps`."
            )
        time.sleep(0.05)
