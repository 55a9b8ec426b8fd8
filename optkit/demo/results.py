"""The table of a comparison: on the screen, and in a folder that nothing overwrites."""

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
    """One optimizer at the last step; means and standard deviations over the seeds."""

    optimizer: str
    train_loss_mean: float
    train_loss_std: float
    test_accuracy_mean: float
    test_accuracy_std: float
    ms_per_step: float  # training steps alone, all seeds together
    seconds: float  # everything: compilation, steps, evaluation
    steps: int
    seeds: int


def summarize(runs: Mapping[str, Run]) -> list[Row]:
    """Makes one row per run."""

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
    """The rows for a reader, in at most 80 columns; the caption says what they mean."""
    steps, seeds = rows[0].steps, rows[0].seeds
    table = Table(
        title=f"{steps:,} steps of 64 digits, mean ± std over {seeds} seeds",
        caption="ms/step: all seeds together, training only, without compilation.\n"
        "seconds: everything, with compilation and evaluation.",
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
    """Finds the folder for the results, makes it, and checks that it can be written.

    Args:
        out: the user's choice, or None for the first free one of `optkit-demo`,
            `optkit-demo-2`, ... in the working directory.
        default: the name of the first of these.
        files: what must not be there yet.

    Returns:
        A folder without results in it.

    Raises:
        OSError: if there cannot be such a folder; the text says why.
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
    with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell
        return folder


def save(runs: Mapping[str, Run], folder: Path) -> list[Path]:
    """Writes the table as CSV and the learning curves as PNG.

    Args:
        runs: what `training.train` returned, by the name of the optimizer.
        folder: from `claim_folder`.

    Returns:
        The files written.

    Raises:
        FileExistsError: if one of them has appeared in the meantime.
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
    """Makes the folder, or the first of `folder-2`, `folder-3`, ... that is new."""
    first = folder.name
    for i in count(2):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()  # atomic: two runs at once get two folders
            break
        folder = folder.with_name(f"{first}-{i}")
    return folder
