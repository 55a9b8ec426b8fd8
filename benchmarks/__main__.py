"""`python -m benchmarks`: one table per job."""

import argparse
import os
import platform
import sys
from collections.abc import Callable

import jax
from rich.console import Console
from rich.table import Table

from . import adan, diag, mfac
from .measure import Row

JOBS: dict[str, tuple[str, Callable[[int, int], list[Row]], int]] = {
    "adan": ("One step of Adan, float32 parameters in 5 leaves", adan.run, 25_000_000),
    "diag": ("Loss, gradient and Hutchinson diagonal", diag.run, 1_800_000),
    "mfac": ("One step of M-FAC, window 512", mfac.run, 1_000_000),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the chosen jobs and prints their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--job", choices=JOBS, action="append", help="default: all")
    parser.add_argument("--size", type=int, help="number of parameters")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds")
    options = parser.parse_args(argv)
    console = Console()
    console.print(_machine())
    for job in options.job or JOBS:
        title, run, size = JOBS[job]
        size = options.size or size
        console.print(_table(f"{title} ({size:,})", run(size, options.rounds)))
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
