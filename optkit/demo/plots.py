"""Figures of the demo, drawn without pyplot: no global state, no display needed."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .training import Run, mean_and_std

# Okabe and Ito: eight colours that colour-blind readers tell apart, without the yellow.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip


def learning_curves(runs: Mapping[str, Run]) -> Figure:
    """Draws train loss and test accuracy, one line per optimizer.

    Args:
        runs: what `training.train` returned, by the name of the optimizer.

    Returns:
        Means over the seeds, in a band of one standard deviation on either side.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained", dpi=160)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for i, (name, run) in enumerate(runs.items()):
        color = COLORS[i % len(COLORS)]
        _draw_band(loss_axes, run.steps, run.train_loss, color, name)
        _draw_band(accuracy_axes, run.steps, run.test_accuracy, color, name)
    _label(loss_axes, "train loss")
    loss_axes.set_yscale("log")
    _label(accuracy_axes, "test accuracy [%]")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    accuracy_axes.set_ylim(_accuracy_limits(runs))
    num_seeds = max(run.train_loss.shape[-1] for run in runs.values())
    accuracy_axes.legend(
        title=f"mean ± std, {num_seeds} seeds", loc="lower right", frameon=False
    )
    return figure


def _draw_band(
    axes: Axes,
    steps: np.ndarray,
    values: Float[np.ndarray, "points seeds"],
    color: str,
    label: str,
) -> None:
    """Draws the mean over the seeds, and one standard deviation around it."""
    mean, std = mean_and_std(values)
    low = np.maximum(mean - std, 0.1 * mean)  # a logarithmic axis has no zero
    axes.plot(steps, mean, color=color, label=label, linewidth=1.6)
    axes.fill_between(steps, low, mean + std, color=color, alpha=0.2, linewidth=0)


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left")
    axes.set_xlabel("step")
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)


def _accuracy_limits(runs: Mapping[str, Run]) -> tuple[float, float]:
    """Leaves out the climb from chance, which would flatten all that follows."""
    shown = [run.test_accuracy[len(run.steps) // 10 :] for run in runs.values()]
    low = min(float(values.mean(axis=-1).min()) for values in shown)
    high = max(float(values.max()) for values in shown)
    margin = 0.05 * (high - low) + 1e-3
    return low - margin, high + margin
