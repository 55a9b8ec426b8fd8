"""Figures of what long runs leave behind (`pip install "optkit[plot]"`).

Each function draws one thing into Axes of matplotlib's, and returns them. Those that
are passed as `ax=` keep their colours and labels; `spectrum` and `histogram` make their
heights logarithmic. Without, new ones are made, which a notebook shows. Several calls
draw into one picture:

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

from .._check import Check
from .._curvature.spectrum import Spectrum
from .style import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
            A point with no finite neighbour is a dot.
        steps: where the points are; None counts them from 0.
        label: of the curve.
        ax: where to draw; None makes new Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: for values of another shape, or as many steps as there are not.
        TypeError: for values that are not real numbers, or an `ax` that is none.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import numpy as np, optkit as ok
        >>> losses = np.exp(-np.arange(50)[:, None] / np.array([8.0, 10.0, 12.0]))
        >>> ax = ok.plot.curves(losses, label="3 seeds")
        >>> ax.set_yscale("log")
    """
    check = Check("ok.plot.curves")
    values = _numbers(check, values)
    rows = values[:, None] if values.ndim == 1 else values
    text = f"needs values of shape (points, seeds), at least one, got {values.shape}."
    check.that(rows.ndim == 2 and rows.size, text)
    steps = np.arange(len(rows)) if steps is None else _numbers(check, steps)
    check.shapes("Pass one for each row of the values.", steps=(steps, (len(rows),)))
    axes = _axes(check, ax)
    mean, low, high = _band(rows)
    (line,) = axes.plot(steps, mean, label=label, linewidth=1.6, marker=".")
    line.set_markevery(_alone(mean))
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
        TypeError: for a spectrum that is none, or an `ax` that is none.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**4), jnp.arange(1.0, 9.0))
        >>> s = ok.spectrum(C, key=jax.random.key(0), num_probes=4, num_steps=6)
        >>> ax = ok.plot.spectrum(s, label="Hessian")
    """
    check = Check("ok.plot.spectrum")
    check.instance(Spectrum, "what `ok.spectrum(...)` returns", spectrum=spectrum)
    check.optional.positive(width=width)
    nodes = np.asarray(spectrum.nodes)
    text = "needs a finite spectrum. Look at the params and batch of the curvature."
    check.that(np.all(np.isfinite(nodes)), text)
    low, high = float(nodes.min()), float(nodes.max())
    width = (high - low) / 100 or 1.0 if width is None else width
    # As fine as the bumps are wide, around each node, whatever the range is.
    near = nodes[..., None] + width * np.linspace(-5, 5, 41)
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    at = np.unique(np.concatenate([grid, near.ravel()]))
    mean, error = spectrum.density(jax.numpy.asarray(at), width)
    axes = _axes(check, ax)
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
    return _finish(axes, "eigenvalue", label, "density")


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
        ValueError: for a tree without a finite entry, or less than one bin.
        TypeError: for leaves that are not real numbers, or an `ax` that is none.
        ModuleNotFoundError: without `ax`, where matplotlib is not installed.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> params = {"w": jnp.linspace(-1.0, 1.0, 100) ** 3, "b": jnp.zeros(3)}
        >>> ax = ok.plot.histogram(params, label="weights")
    """
    check = Check("ok.plot.histogram")
    check.count(bins=bins)
    leaves = [np.ravel(_numbers(check, leaf)) for leaf in jax.tree.leaves(tree)]
    finite = [leaf[np.isfinite(leaf)] for leaf in leaves]
    finite = [leaf for leaf in finite if leaf.size]
    check.that(finite, "needs a tree with a finite entry, got none. Look for the NaN.")
    low = min(leaf.min() for leaf in finite)
    high = max(leaf.max() for leaf in finite)
    room = max(abs(low), abs(high), 1e-30) * np.finfo(np.float32).eps * bins
    if high - low < room:  # one value to rounding: bins around it
        low, high = low - room / 2, high + room / 2
    edges = np.linspace(low, high, bins + 1)
    counts = sum(np.histogram(leaf, edges)[0] for leaf in finite)
    missing = sum(leaf.size for leaf in leaves) - sum(leaf.size for leaf in finite)
    if missing:
        label = f"{label or 'entries'} ({missing} more not finite)"
    axes = _axes(check, ax)
    (line,) = axes.plot([], [])  # takes the next colour
    axes.stairs(
        counts, edges, label=label, color=line.get_color(), fill=True, alpha=0.4
    )
    axes.stairs(counts, edges, color=line.get_color(), linewidth=1.2)
    line.remove()
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    return _finish(axes, "value", label, "entries")


def _alone(mean: np.ndarray) -> list[int]:
    """The points that no line would show: their neighbours are not finite."""
    here = np.isfinite(mean)
    around = np.concatenate([[False], here, [False]])
    return np.flatnonzero(here & ~around[:-2] & ~around[2:]).tolist()


def _band(
    values: Float[np.ndarray, "points seeds"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, and the ends of the band around it."""
    ddof = min(1, values.shape[1] - 1)
    with np.errstate(invalid="ignore", over="ignore"):  # a seed that diverged
        mean, std = values.mean(axis=1), values.std(axis=1, ddof=ddof)
        low, least = mean - std, values.min(axis=1)
        # A logarithmic axis has no zero.
        low = np.where((low <= 0) & (least > 0), least, low)
    return mean, low, mean + std


def _numbers(check: Check, values: Any) -> np.ndarray:
    """An array of float64, or a `TypeError` where there are no real numbers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # ragged lists, random keys
        array = np.asarray(None)
    is_floating = jax.numpy.issubdtype(array.dtype, np.floating)  # bfloat16, too
    got = f"{type(values).__name__}: {str(values)[:60]}"
    text = f"needs arrays of real numbers, got {got}. Leave out, or convert, the rest."
    check.that(is_floating or array.dtype.kind in "iub", text, TypeError)
    return array.astype(np.float64)


def _axes(check: Check, ax: "Axes | None") -> Any:
    """The Axes to draw into."""
    if ax is not None:
        text = f"needs matplotlib's Axes for `ax`, got {type(ax).__name__}. Pass one."
        check.that(hasattr(ax, "plot"), text, TypeError)
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


def _finish(ax: Any, xlabel: str, label: str | None, ylabel: str = "") -> Any:
    """Names the axes if the user has not, and what is drawn."""
    if not ax.get_xlabel():
        ax.set_xlabel(xlabel)
    if not ax.get_ylabel():
        ax.set_ylabel(ylabel)
    if label is not None:
        ax.legend(frameon=False)
    return ax
