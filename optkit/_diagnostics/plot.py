"""Figures of what long runs leave behind (`pip install "optkit[plot]"`).

Each function draws one thing into Axes of matplotlib's, and returns them. Those that
are passed as `ax=` keep their colours and scales where the user has set them; without,
new ones are made, which a notebook shows. Several calls draw into one picture:

    ax = ok.plot.curves(losses["adam"], label="Adam")
    ax = ok.plot.curves(losses["adan"], label="Adan", ax=ax)
    ax.set_yscale("log")
"""

import importlib
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float, PyTree
from numpy.typing import ArrayLike

from .._curvature.spectrum import Spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito: eight colours that colour-blind readers tell apart, without the yellow.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
)  # fmt: skip


def curves(
    values: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a curve with its spread over seeds: mean ± one standard deviation.

    Args:
        values: of shape (points, seeds), or (points,) of one seed. Where all are
            positive, the band ends at the least seed rather than below zero.
            Where one is not finite, the curve has a gap.
        steps: where the points are; None counts them from 0.
        label: of the curve.
        ax: where to draw; None makes new Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: for values of another shape, or as many steps as there are not.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import numpy as np, optkit as ok
        >>> losses = np.exp(-np.arange(50)[:, None] / np.array([8.0, 10.0, 12.0]))
        >>> ax = ok.plot.curves(losses, label="3 seeds")
        >>> ax.set_yscale("log")
    """
    values = np.asarray(values)
    rows = values[:, None] if values.ndim == 1 else values
    if rows.ndim != 2:
        raise ValueError(
            f"`ok.plot.curves` needs values of shape (points, seeds), got "
            f"{values.shape}. Move the seeds to the last axis."
        )
    steps = np.arange(len(rows)) if steps is None else np.asarray(steps)
    if steps.shape != (len(rows),):
        raise ValueError(
            f"`ok.plot.curves` got steps of shape {steps.shape} for {len(rows)} "
            f"points. Pass one step for each row of the values."
        )
    axes = _axes(ax)
    mean, low, high = _band(rows.astype(np.float64))
    (line,) = axes.plot(steps, mean, label=label, linewidth=1.6)
    if rows.shape[1] > 1:
        axes.fill_between(
            steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0
        )
    return _finish(axes, "step", label)


def spectrum(
    spectrum: Spectrum,
    *,
    width: float | None = None,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the density of the eigenvalues, and its standard error.

    A node of the spectrum becomes a Gaussian bump. On the logarithmic axis, the lower
    end is a tenth of the height of the bump that one single eigenvalue makes.

    Args:
        spectrum: from `ok.spectrum`.
        width: the bumps' standard deviation; None is a hundredth of the range.
        label: of the curve.
        ax: where to draw; None makes new Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: for a spectrum that is not finite, or a width that is not positive.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**4), jnp.arange(1.0, 9.0))
        >>> s = ok.spectrum(C, key=jax.random.key(0), num_probes=4, num_steps=6)
        >>> ax = ok.plot.spectrum(s, label="Hessian")
    """
    nodes = np.asarray(spectrum.nodes)
    if not np.all(np.isfinite(nodes)):
        raise ValueError(
            "`ok.plot.spectrum` got a spectrum that is not finite. Look at the params "
            "and the batch of the curvature: a product with it is not finite."
        )
    low, high = float(nodes.min()), float(nodes.max())
    width = (high - low) / 100 or 1.0 if width is None else width
    if not width > 0:
        raise ValueError(f"`ok.plot.spectrum` needs a width > 0, got width={width!r}.")
    at = np.linspace(low - 5 * width, high + 5 * width, 1000)
    mean, error = spectrum.density(jax.numpy.asarray(at), width)
    axes = _axes(ax)
    (line,) = axes.plot(at, np.asarray(mean), label=label, linewidth=1.6)
    if error is not None:
        band = (
            np.asarray(mean) - np.asarray(error),
            np.asarray(mean) + np.asarray(error),
        )
        axes.fill_between(at, *band, color=line.get_color(), alpha=0.3, linewidth=0)
    one = 1 / (spectrum.size * width * np.sqrt(2 * np.pi))
    is_first = axes.get_yscale() != "log"
    bottom = 0.1 * one if is_first else min(axes.get_ylim()[0], 0.1 * one)
    axes.set_yscale("log")
    axes.set_ylim(bottom=bottom)
    axes.set_ylabel("density")
    return _finish(axes, "eigenvalue", label)


def histogram(
    tree: PyTree,
    *,
    bins: int = 60,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws how often the entries of a pytree have which value.

    Args:
        tree: arrays, such as the params, one layer, or an optimizer's moments.
        bins: how many, from the least entry to the largest.
        label: of the outline; entries that are not finite are counted behind it.
        ax: where to draw; None makes new Axes.

    Returns:
        The Axes, with a logarithmic count: zero and few entries are told apart.

    Raises:
        ValueError: for a tree without a finite entry.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> params = {"w": jnp.linspace(-1.0, 1.0, 100) ** 3, "b": jnp.zeros(3)}
        >>> ax = ok.plot.histogram(params, label="weights")
    """
    leaves = [np.ravel(np.asarray(a).astype(float)) for a in jax.tree.leaves(tree)]
    finite = [leaf[np.isfinite(leaf)] for leaf in leaves]
    finite = [leaf for leaf in finite if leaf.size]
    if not finite:
        raise ValueError("`ok.plot.histogram` got a tree without a finite entry.")
    low = min(leaf.min() for leaf in finite)
    high = max(leaf.max() for leaf in finite)
    edges = np.histogram_bin_edges([low, high], bins)
    counts = sum(np.histogram(leaf, edges)[0] for leaf in finite)
    missing = sum(leaf.size for leaf in leaves) - sum(leaf.size for leaf in finite)
    if missing:
        label = f"{label or 'entries'} ({missing} more not finite)"
    axes = _axes(ax)
    (line,) = axes.plot([], [])  # takes the next colour
    axes.stairs(
        counts, edges, label=label, color=line.get_color(), fill=True, alpha=0.4
    )
    axes.stairs(counts, edges, color=line.get_color(), linewidth=1.2)
    line.remove()
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_ylabel("entries")
    return _finish(axes, "value", label)


def style(ax: Any) -> None:
    """Colours, a grid behind them, and two spines."""
    ax.set_prop_cycle(color=COLORS)
    ax.grid(visible=True, which="major", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _band(
    values: Float[np.ndarray, "points seeds"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, and the ends of the band around it."""
    ddof = min(1, values.shape[1] - 1)
    with np.errstate(invalid="ignore"):  # a seed that diverged: inf - inf
        mean, std = values.mean(axis=1), values.std(axis=1, ddof=ddof)
        low, least = mean - std, values.min(axis=1)
        # A logarithmic axis has no zero.
        low = np.where((low <= 0) & (least > 0), least, low)
    return mean, low, mean + std


def _axes(ax: "Axes | None") -> Any:
    """The Axes to draw into."""
    if ax is not None:
        return ax
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '`ok.plot` needs matplotlib: run `pip install "optkit[plot]"`.'
        ) from error
    _, ax = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    style(ax)
    return ax


def _finish(ax: Any, xlabel: str, label: str | None) -> Any:
    """Names the axis if the user has not, and what is drawn."""
    if not ax.get_xlabel():
        ax.set_xlabel(xlabel)
    if label is not None:
        ax.legend(frameon=False)
    return ax
