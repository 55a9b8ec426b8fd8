"""Figures of long runs (`pip install matplotlib`).

Each function draws one thing into Matplotlib Axes and returns them; `label` names it in
the legend. Axes passed as `ax=` keep their colours and labels; `spectrum` and
`histogram` make their y-axis logarithmic. Without `ax=`, each call makes new Axes,
which a notebook shows. To draw several curves into one figure:

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

_NO_MATPLOTLIB = "`ok.plot` needs Matplotlib: run `pip install matplotlib`."


def curves(
    values: ArrayLike,
    steps: ArrayLike | None = None,
    *,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws a curve with its spread over seeds: mean ± one standard deviation.

    `values` has shape (points, seeds), or (points,) for one seed. If all values are
    positive, the band ends at the smallest seed rather than below zero. Non-finite
    values leave a gap; a point between two gaps is drawn as a dot. `steps` holds the
    positions of the points, by default 0, 1, 2, ...

    Returns:
        The Axes.

    Raises:
        ValueError: for `values` or `steps` of another shape.
        TypeError: if the values are not real numbers.

    Example:
        >>> import numpy as np, optkit as ok
        >>> losses = np.exp(-np.arange(50)[:, None] / np.array([8.0, 10.0, 12.0]))
        >>> ax = ok.plot.curves(losses, label="3 seeds")
    """
    check = Check("ok.plot.curves")
    values = _numbers(check, values)
    rows = values[:, None] if values.ndim == 1 else values
    text = f"needs values of shape (points, seeds), at least one, got {values.shape}."
    check.that(rows.ndim == 2 and rows.size, text)
    steps = np.arange(len(rows)) if steps is None else _numbers(check, steps)
    check.shapes("Pass one step for each point.", steps=(steps, (len(rows),)))
    axes = _axes(check, ax)
    mean, low, high = _band(rows)
    (line,) = axes.plot(steps, mean, label=label, linewidth=1.6, marker=".")
    line.set_markevery(_isolated(mean))
    if rows.shape[1] > 1:
        color = line.get_color()
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    return _finish(axes, "step", label)


def spectrum(
    spectrum: Spectrum,
    *,
    width: float | None = None,
    label: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Draws the density of the eigenvalues and its standard error.

    Each node of the spectrum becomes a Gaussian bump of standard deviation `width`, by
    default a hundredth of the range. The logarithmic y-axis starts at a tenth of the
    height of one eigenvalue's bump.

    Returns:
        The Axes.

    Raises:
        ValueError: if the spectrum is not finite.
        TypeError: if `spectrum` is not an `ok.Spectrum`.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**4), jnp.arange(1.0, 9.0))
        >>> s = ok.spectrum(C, key=jax.random.key(0), num_probes=4, num_steps=6)
        >>> ax = ok.plot.spectrum(s, label="Hessian")
    """
    check = Check("ok.plot.spectrum")
    wanted = (
        "what `ok.spectrum(...)` returns (or try `ok.plot.histogram(eigvalsh(...))`)"
    )
    check.instance(Spectrum, wanted, spectrum=spectrum)
    check.optional.positive(width=width)
    nodes = np.asarray(spectrum.nodes)
    text = "needs a finite spectrum, got NaN. Check the params and the batch."
    check.that(np.all(np.isfinite(nodes)), text)
    low, high = float(nodes.min()), float(nodes.max())
    width = (high - low) / 100 or 1.0 if width is None else width
    # Fine enough to resolve the bump at each node, however wide the range is.
    near = nodes[..., None] + width * np.linspace(-5, 5, 41)
    grid = np.linspace(low - 5 * width, high + 5 * width, 1000)
    at = np.unique(np.concatenate([grid, near.ravel()]))
    mean, error = spectrum.density(jax.numpy.asarray(at), width)
    axes = _axes(check, ax)
    (line,) = axes.plot(at, np.asarray(mean), label=label, linewidth=1.6)
    if error is not None:
        band = np.asarray(mean - error), np.asarray(mean + error)
        axes.fill_between(at, *band, color=line.get_color(), alpha=0.3, linewidth=0)
    bottom = 0.1 / (spectrum.size * width * np.sqrt(2 * np.pi))
    if axes.get_yscale() == "log":
        bottom = min(axes.get_ylim()[0], bottom)
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
    """Draws a histogram of the entries of a pytree.

    `tree` may be the params, one layer, or an optimizer's moments. The bins range from
    the smallest entry to the largest; the label counts the entries that are not finite.
    The y-axis is logarithmic, so that a few entries do not look like none.

    Returns:
        The Axes.

    Raises:
        ValueError: if the tree has no finite entry.
        TypeError: if the leaves are not real numbers.

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
    check.that(finite, "needs a tree with a finite entry, got none. Look for NaN.")
    low = min(leaf.min() for leaf in finite)
    high = max(leaf.max() for leaf in finite)
    room = max(abs(low), abs(high), 1e-30) * np.finfo(np.float32).eps * bins
    if high - low < room:  # equal to rounding: put the bins around the value
        low, high = low - room / 2, high + room / 2
    edges = np.linspace(low, high, bins + 1)
    counts = sum(np.histogram(leaf, edges)[0] for leaf in finite)
    if missing := sum(np.sum(~np.isfinite(leaf)) for leaf in leaves):
        label = f"{label or 'entries'} ({missing} more not finite)"
    axes = _axes(check, ax)
    (line,) = axes.plot([], [])  # takes the next colour
    color = line.get_color()
    line.remove()
    axes.stairs(counts, edges, label=label, color=color, fill=True, alpha=0.4)
    axes.stairs(counts, edges, color=color, linewidth=1.2)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    return _finish(axes, "value", label, "entries")


def _isolated(mean: np.ndarray) -> list[int]:
    """The finite points between two gaps, which a line would not show."""
    here = np.isfinite(mean)
    around = np.concatenate([[False], here, [False]])
    return np.flatnonzero(here & ~around[:-2] & ~around[2:]).tolist()


def _band(
    values: Float[np.ndarray, "points seeds"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean, and the lower and upper edges of the band around it."""
    ddof = min(1, values.shape[1] - 1)
    with np.errstate(invalid="ignore", over="ignore"):  # a seed that diverged
        mean, std = values.mean(axis=1), values.std(axis=1, ddof=ddof)
        low, least = mean - std, values.min(axis=1)
        # A logarithmic axis has no zero.
        low = np.where((low <= 0) & (least > 0), least, low)
    return mean, low, mean + std


def _numbers(check: Check, values: Any) -> np.ndarray:
    """The values in float64; they must be real numbers."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # ragged lists, random keys
        array = np.asarray(None)
    is_floating = jax.numpy.issubdtype(array.dtype, np.floating)  # bfloat16, too
    got = f"{type(values).__name__}: {str(values)[:60]}"
    text = f"needs arrays of real numbers, got {got}. Convert or leave out the rest."
    check.that(is_floating or array.dtype.kind in "iub", text, TypeError)
    return array.astype(np.float64)


def _axes(check: Check, ax: "Axes | None") -> Any:
    """The Axes to draw into."""
    if ax is not None:
        got = type(ax).__name__
        text = f"needs Matplotlib Axes for `ax`, got {got}. Pass one, say `axes[0]`."
        check.that(hasattr(ax, "plot"), text, TypeError)
        return ax
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(_NO_MATPLOTLIB) from error
    _, ax = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    style(ax)
    return ax


def _finish(ax: Any, xlabel: str, label: str | None, ylabel: str = "") -> Any:
    """Adds a legend, and labels to axes that have none."""
    ax.set(xlabel=ax.get_xlabel() or xlabel, ylabel=ax.get_ylabel() or ylabel)
    if label is not None:
        ax.legend(frameon=False)
    return ax
