"""The table and the picture of the hyper-cleaning demo."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from rich.table import Table

from .cleaning import Cleaning
from .training import mean_and_std

DEFAULT_FOLDER = "optkit-cleaning"
CSV_NAME = "cleaning.csv"
PNG_NAME = "lowest_weights.png"
NUM_SHOWN = 12
WRONG, RIGHT = "#D55E00", "#0072B2"


class Row(NamedTuple):
    """One method; means and standard deviations over the seeds."""

    method: str
    test_accuracy_mean: float
    test_accuracy_std: float
    validation_accuracy_mean: float
    validation_accuracy_std: float
    auc_mean: float
    auc_std: float
    seconds: float  # everything, for all seeds together
    steps: int
    seeds: int


def summarize(runs: Mapping[str, Cleaning]) -> list[Row]:
    """Returns one row per method."""

    def both(values: np.ndarray) -> tuple[float, float]:
        mean, std = mean_and_std(values)
        return float(mean), float(std)

    return [
        Row(
            name,
            *both(run.test_accuracy),
            *both(run.validation_accuracy),
            *both(run.auc),
            seconds=run.seconds,
            steps=run.steps,
            seeds=len(run.auc),
        )
        for name, run in runs.items()
    ]


def as_table(rows: list[Row]) -> Table:
    """Formats the rows for the terminal, in at most 80 columns."""
    table = Table(
        title=f"3,000 digits, half of their labels random, mean ± std over "
        f"{rows[0].seeds} seeds",
        caption="test accuracy: a linear classifier trained with the final weights.\n"
        "AUC: how often a right label has more weight than a wrong one.\n"
        "seconds: all seeds together, including compilation and that training.",
        caption_justify="left",
    )
    table.add_column("weights")
    for heading in ("test accuracy [%]", "AUC", "steps", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.method,
            f"{100 * row.test_accuracy_mean:.2f} ± {100 * row.test_accuracy_std:.2f}",
            f"{row.auc_mean:.3f} ± {row.auc_std:.3f}",
            f"{row.steps:,}",
            f"{row.seconds:.1f}",
        )
    return table


def lowest_weights(
    runs: Mapping[str, Cleaning],
    images: Float[np.ndarray, "n 784"],
    given: np.ndarray,
    true: np.ndarray,
) -> Figure:
    """Draws the digits to which each method gives the least weight, with their labels.

    Args:
        runs: The outcomes, by the name of the method.
        images: The training digits.
        given: The labels that the methods saw, of the first seed.
        true: The true labels.

    Returns:
        A row of digits for each method, of the first seed.
    """
    size = len(runs), NUM_SHOWN
    figure = Figure(
        figsize=(0.75 * size[1] + 1.6, 1.0 * size[0] + 0.6),
        layout="constrained",
        dpi=160,
    )
    figure.suptitle(
        "The digits of lowest weight: given → true label, or the label if it is right",
        fontsize=11,
    )
    grid = figure.subplots(*size, squeeze=False)
    for axes_row, (name, run) in zip(grid, runs.items(), strict=True):
        lowest = np.argsort(run.weights[0], kind="stable")[:NUM_SHOWN]
        for axes, i in zip(axes_row, lowest, strict=False):
            axes.imshow(images[i].reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            is_wrong = given[i] != true[i]
            text = f"{given[i]} → {true[i]}" if is_wrong else f"{given[i]}"
            axes.set_title(text, fontsize=9, pad=2, color=WRONG if is_wrong else RIGHT)
            axes.spines[:].set_visible(False)
        axes_row[0].set_ylabel(
            name, rotation=0, ha="right", va="center", fontsize=9, labelpad=8
        )
    return figure


def save(
    runs: Mapping[str, Cleaning],
    folder: Path,
    images: np.ndarray,
    given: np.ndarray,
    true: np.ndarray,
) -> list[Path]:
    """Writes the table as CSV and the picture as PNG.

    Args:
        runs: The outcomes by the name of the method, including the baselines.
        folder: A folder without these files.
        images: The training digits.
        given: The labels that the methods saw, of the first seed.
        true: The true labels.

    Returns:
        The files written; the picture is left out if no weights were learned.
    """
    table, picture = folder / CSV_NAME, folder / PNG_NAME
    with table.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(summarize(runs))
    learned = {name: run for name, run in runs.items() if run.steps}
    if not learned:
        return [table]
    with picture.open("xb") as file:
        lowest_weights(learned, images, given, true).savefig(file, format="png")
    return [table, picture]
