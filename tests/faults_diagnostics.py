"""Faults of figures."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from faulty import table
from matplotlib.figure import Figure

import optkit as ok

INF, NAN = float("inf"), float("nan")


def axes() -> Any:
    """Axes that no window shows."""
    return Figure().subplots()


def heights(ax: Any) -> np.ndarray:
    """Of the last line."""
    return np.asarray(ax.lines[-1].get_ydata())


def counts(ax: Any) -> np.ndarray:
    """Of the bins."""
    return np.asarray(ax.patches[0].get_data().values)


def key() -> Any:
    """No number."""
    return jr.key(0)


def curves(values: Any, **options: Any) -> Any:
    """A curve."""
    return ok.plot.curves(values, **({"ax": axes()} | options))


def spectrum(nodes: Any, **options: Any) -> Any:
    """The density of a spectrum with nodes of equal weight."""
    nodes = jnp.atleast_2d(jnp.asarray(nodes, jnp.float32))
    weights = jnp.ones_like(nodes) / nodes.shape[1]
    found = ok.Spectrum(nodes, weights, jnp.zeros_like(nodes), 4)
    return ok.plot.spectrum(found, **({"ax": axes()} | options))


def histogram(tree: Any, **options: Any) -> Any:
    """Counts of entries."""
    return ok.plot.histogram(tree, **({"ax": axes()} | options))


ROWS = table(
    globals(),
    """
    plot.curves:
        nan       heights(curves([1.0, NAN, 3.0]))      -> NaN
        nan       heights(curves([[1.0, INF], [1.0, 3.0]]))  -> NaN
        zero      curves(jnp.zeros((3, 2)))             -> right: not heights(x).any()
        huge      heights(curves([[1e308, 1e308], [1.0, 1.0]]))  -> NaN
        empty     curves([])                            -> ValueError: (0,)
        empty     curves(np.ones((3, 0)))               -> ValueError: (3, 0)
        shape     curves(np.ones((2, 2, 2)))            -> ValueError: (2, 2, 2)
        shape     curves(np.ones(3), steps=np.ones(2))  -> ValueError: 3 points
        tree      curves([[1.0, 2.0], [3.0]])           -> TypeError: list
        dtype     curves(jnp.arange(3))                 -> right: heights(x)[2] == 2
        dtype     curves(jnp.ones(3, "bfloat16"))       -> right: heights(x)[2] == 1
        dtype     curves(np.ones(3, complex))           -> TypeError: real numbers
        object    curves(["a", "b"])                    -> TypeError: real numbers
        object    curves(None)                          -> TypeError: NoneType
        object    ok.{}(np.ones(3), ax=3)               -> TypeError: axes[0]
    plot.spectrum:
        nan       spectrum([1.0, NAN])                  -> ValueError: not finite
        zero      spectrum([0.0, 0.0])                  -> right: heights(x).max() > 0
        option    spectrum([1.0, 2.0], width=0.0)       -> ValueError: width > 0
        option    spectrum([1.0, 2.0], width=INF)       -> ValueError: width > 0
        option    spectrum([1.0, 2.0], width=NAN)       -> ValueError: width > 0
        object    ok.{}(np.ones(3))                     -> TypeError: eigvalsh
        object    spectrum([1.0, 2.0], ax="here")       -> TypeError: axes[0]
    plot.histogram:
        nan       histogram([1.0, 2.0, NAN])            -> right: counts(x).sum() == 2
        nan       histogram(jnp.full(3, NAN))           -> ValueError: finite entry
        zero      histogram(jnp.zeros(3))               -> right: counts(x).sum() == 3
        empty     histogram(dict())                         -> ValueError: finite entry
        dtype     histogram(jnp.arange(3))              -> right: counts(x).sum() == 3
        dtype     histogram(jnp.ones(2, complex))       -> TypeError: real numbers
        dtype     histogram(key())                      -> TypeError: real numbers
        option    histogram(jnp.ones(3), bins=0)        -> ValueError: bins >= 1
        option    histogram(jnp.ones(3), bins=2.5)      -> ValueError: bins >= 1
        object    histogram("weights")                  -> TypeError: real numbers
        object    histogram(jnp.ones(3), ax=[0])        -> TypeError: axes[0]
    """,
)
