"""The figure of the demo, drawn without pyplot: no global state, no display."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from .._diagnostics.plot import curves
from .._diagnostics.style import COLORS as COLORS, style
from .training import Run


def learning_curves(runs: Mapping[str, Run]) -> Figure:
    """Draws train loss and test accuracy, one line per optimizer.

    Args:
        runs: What `training.train` returned, by the name of the optimizer.

    Returns:
        A figure of the means over the seeds, with a band of one standard deviation.
    """
    figure = Figure(figsize=(9.0, 3.6), layout="constrained", dpi=160)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    _prepare(loss_axes, "train loss")
    _prepare(accuracy_axes, "test accuracy [%]")
    for name, run in runs.items():
        curves(run.train_loss, run.steps, ax=loss_axes)
        curves(run.test_accuracy, run.steps, label=name, ax=accuracy_axes)
    loss_axes.set_yscale("log")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    accuracy_axes.set_ylim(_accuracy_limits(runs))
    num_seeds = max(run.train_loss.shape[-1] for run in runs.values())
    accuracy_axes.legend(
        title=f"mean ± std, {num_seeds} seeds", loc="lower right", frameon=False
    )
    return figure


def _prepare(axes: Axes, title: str) -> None:
    style(axes)
    axes.set_title(title, loc="left")
    axes.margins(x=0.01)


def _accuracy_limits(runs: Mapping[str, Run]) -> tuple[float, float]:
    """Leaves out the first rise from chance, which would flatten the rest."""
    shown = [run.test_accuracy[len(run.steps) // 10 :] for run in runs.values()]
    low = min(float(values.mean(axis=-1).min()) for values in shown)
    high = max(float(values.max()) for values in shown)
    margin = 0.05 * (high - low) + 1e-3
    return low - margin, high + margin
