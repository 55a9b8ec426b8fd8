"""The table of a comparison, on the screen and in a folder; never overwritten."""

import contextlib
import csv
import tempfile
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table

from .plots import learning_curves
from .training import Run, mean_and_std

DEFAULT_FOLDER = "optkit-demo"
CSV_NAME = "results.csv"
PNG_NAME = "learning_curves.png"


class Row(NamedTuple):
    """One optimizer after the last step; means and standard deviations over seeds."""

    optimizer: str
    train_loss_mean: float
    train_loss_std: float
    test_accuracy_mean: float
    test_accuracy_std: float
    ms_per_step: float  # training steps only, all seeds together
    seconds: float  # including compilation and evaluation
    steps: int
    seeds: int


def summarize(runs: Mapping[str, Run]) -> list[Row]:
    """Returns one row per run."""

    def last(values: np.ndarray) -> tuple[float, float]:
        mean, std = mean_and_std(values[-1])
        return float(mean), float(std)

    return [
        Row(
            name,
            *last(run.train_loss),
            *last(run.test_accuracy),
            ms_per_step=1e3 * run.step_seconds / int(run.steps[-1]),
            seconds=run.total_seconds,
            steps=int(run.steps[-1]),
            seeds=run.train_loss.shape[-1],
        )
        for name, run in runs.items()
    ]


def as_table(rows: list[Row]) -> Table:
    """Formats the rows for the terminal, in at most 80 columns."""
    steps, seeds = rows[0].steps, rows[0].seeds
    table = Table(
        title=f"{steps:,} steps of 64 digits, mean ± std over {seeds} seeds",
        caption="ms/step: all seeds together, training only, without compilation.\n"
        "seconds: the whole run, with compilation and evaluation.",
        caption_justify="left",
    )
    table.add_column("optimizer")
    for heading in ("train loss", "test accuracy [%]", "ms/step", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.optimizer,
            f"{row.train_loss_mean:.2e} ± {row.train_loss_std:.1e}",
            f"{100 * row.test_accuracy_mean:.2f} ± {100 * row.test_accuracy_std:.2f}",
            f"{row.ms_per_step:.2f}",
            f"{row.seconds:.1f}",
        )
    return table


def claim_folder(
    out: str | None,
    default: str = DEFAULT_FOLDER,
    files: Sequence[str] = (CSV_NAME, PNG_NAME),
) -> Path:
    """Creates the folder for the results, and checks that it can be written.

    Args:
        out: The user's choice, or None for the first free one of `optkit-demo`,
            `optkit-demo-2`, ... in the working directory.
        default: The name of the first of these.
        files: The files that must not exist yet.

    Returns:
        A folder without results.

    Raises:
        OSError: If there is no such folder; the message says why.
    """
    if out is None:
        return _next_free(Path(default))
    folder = Path(out)
    if not out.strip() or (folder.exists() and not folder.is_dir()):
        raise NotADirectoryError(f"{out!r} is not a folder")
    for name in files:
        if (folder / name).exists():
            raise FileExistsError(
                f"{out!r} already holds {name}; choose another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):  # permissions alone do not say
        return folder


def save(runs: Mapping[str, Run], folder: Path) -> list[Path]:
    """Writes the table as CSV and the learning curves as PNG.

    Args:
        runs: What `training.train` returned, by the name of the optimizer.
        folder: From `claim_folder`.

    Returns:
        The files written.

    Raises:
        FileExistsError: If one of them has appeared in the meantime.
    """
    table, figure = folder / CSV_NAME, folder / PNG_NAME
    with table.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(summarize(runs))
    with figure.open("xb") as file:
        learning_curves(runs).savefig(file, format="png")
    return [table, figure]


def _next_free(folder: Path) -> Path:
    """Creates the folder, or the first of `folder-2`, `folder-3`, ... that is free."""
    first = folder.name
    for i in count(2):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # atomic: simultaneous runs get different folders
            break
        folder = folder.with_name(f"{first}-{i}")
    return folder
