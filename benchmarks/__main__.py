"""`python -m benchmarks`: one table per job."""

import argparse
import os
import platform
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from rich.console import Console
from rich.table import Table

from . import (
    adahessian,
    adan,
    bilevel,
    convergence,
    diag,
    f2sa,
    implicit,
    implicit_memory,
    mfac,
    quality,
)
from .measure import Row

Tables: TypeAlias = list[Row] | list[list[Row]]
JOBS: dict[str, tuple[str, Callable[[int, int], Tables], int]] = {
    "adahessian": ("A step of AdaHessian on 512 examples", adahessian.run, 1_800_000),
    "sophia": ("A step of Sophia on 512 examples", adahessian.run_sophia, 1_800_000),
    "adan": ("One step of Adan, float32 parameters in 5 leaves", adan.run, 25_000_000),
    "f2sa": ("50 steps of F2SA, each with 10 of y, batches of 64", f2sa.run, 100),
    "bilevel": ("100 steps of SOBA and SABA, batches of 64", bilevel.run, 100),
    "diag": ("Loss, gradient and Hutchinson diagonal", diag.run, 1_800_000),
    "implicit": ("Hypergradient within 1e-6, float64 weights", implicit.run, 640),
    "implicit_memory": (
        "Gradient of a solution by its steps, and without them, float32 weights",
        implicit_memory.run,
        3_000,
    ),
    "mfac": ("One step of M-FAC, window 512", mfac.run, 1_000_000),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the chosen jobs and prints their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    jobs = [*JOBS, "convergence", "quality"]
    parser.add_argument("--job", choices=jobs, action="append", help="default: all")
    parser.add_argument("--size", type=int, help="number of parameters")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    parser.add_argument(
        "--tune", action="store_true", help="of quality: search the grids again"
    )
    options = parser.parse_args(argv)
    console = Console()
    console.print(_machine())
    for job in options.job or jobs:
        if job == "quality":
            quality.run(console, tune=options.tune)
            continue
        if job == "convergence":
            convergence.run(console)
            continue
        title, run, size = JOBS[job]
        size = options.size or size
        results: Any = run(size, options.rounds)
        for rows in results if isinstance(results[0], list) else [results]:
            console.print(_table(f"{title} ({size:,})", rows))
    return 0


def _table(title: str, rows: list[Row]) -> Table:
    table = Table(title=title)
    for column in ("", "ms", f"ratio to {rows[0].name}", "quartiles", "compile s"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_column("temporaries MB", justify="right")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.milliseconds:.1f}",
            f"{row.ratio:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.compile_seconds:.2f}",
            f"{row.temp_bytes / 1e6:.0f}",
        )
    return table


def _machine() -> str:
    device = jax.devices()[0]
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {device.device_kind}; "
        f"Python {platform.python_version()}, jax {jax.__version__}"
    )


if __name__ == "__main__":
    sys.exit(main())
