"""Plots as small SVG files, drawn without pyplot."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from optkit.demo.plots import COLORS

from .report import Line, Plot

STYLES = {"ours": "-", "peer": "--", "floor": ":"}
MOST_POINTS = 60


def draw(plot: Plot) -> Figure:
    """Draws a plot: optkit solid, other libraries dashed, the floor dotted."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for i, line in enumerate(plot.lines):
        x, y = _thinned(line)
        axes.plot(
            x,
            y,
            STYLES[line.role],
            color=COLORS[i % len(COLORS)],
            marker="o" if len(x) < 10 else None,
            markersize=3,
            linewidth=1.6,
            label=line.name,
        )
    axes.set_title(plot.title, loc="left", fontsize=10)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.x_log:
        axes.set_xscale("log")
        _name_points(axes, plot)
    if plot.y_log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(visible=True, which="major", color="0.85", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def _name_points(axes: Any, plot: Plot) -> None:
    """Labels the points of a logarithmic axis as plain numbers, if they are few."""
    at = sorted({float(x) for line in plot.lines for x in line.x})
    if len(at) < 10:
        axes.set_xticks(at, [f"{x:,.0f}" for x in at])
        axes.minorticks_off()


def write(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """Writes `name`.svg for each plot; the same numbers give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context({"svg.hashsalt": "optkit"}):
        for plot in plots:
            written.append(folder / f"{plot.name}.svg")
            draw(plot).savefig(written[-1], format="svg", metadata={"Date": None})
    return written


def _thinned(line: Line) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    if len(x) <= MOST_POINTS:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))
    return x[kept], y[kept]
