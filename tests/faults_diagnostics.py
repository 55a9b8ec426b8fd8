"""Faults of figures and of progress."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fault_options as opt
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fault_outcomes import INF, NAN, Raises, Right, Shows
from faulty import Fault, Kind, Row, calls
from matplotlib.figure import Figure

import optkit as ok

AXES = opt.Option("", (), (3, "here", [0]), "axes[0]")


def heights(ax: Any) -> np.ndarray:
    """Of the last line."""
    return np.asarray(ax.lines[-1].get_ydata())


def counts(ax: Any) -> np.ndarray:
    """Of the bins."""
    return np.asarray(ax.patches[0].get_data().values)


@dataclass(frozen=True, kw_only=True)
class Plot(Row):
    """`make(values, ...)` draws values into Axes that no window shows."""

    drawn: Callable[[Any], np.ndarray] = heights  # what the Axes show

    def with_option(self, name: str, value: Any) -> Any:
        """A figure with another value of an option."""
        return self.make(np.ones(3), **{name: value})

    def of(self, values: Any, **options: Any) -> np.ndarray:
        """What the Axes show of these values."""
        return self.drawn(self.make(values, **options))


def axes() -> Any:
    """Axes that no window shows."""
    return Figure().subplots()


def spectrum(values: Any, **options: Any) -> Any:
    """The density of a spectrum with nodes of equal weight."""
    nodes = jnp.atleast_2d(jnp.asarray(values, jnp.float32))
    weights = jnp.ones_like(nodes) / nodes.shape[1]
    found = ok.Spectrum(nodes, weights, jnp.zeros_like(nodes), 4)
    return ok.plot.spectrum(found, **options)


FINITE = ("values of 0", "integers", "values in bfloat16")
NO_NUMBERS = Raises(TypeError, "real numbers")
# fmt: off
OF_ARRAYS = [
    Fault("empty", "no values", Raises(ValueError, ""), lambda plot: plot.of([])),
    Fault("dtype", "complex values", NO_NUMBERS,
        lambda plot: plot.of(np.ones(3, complex))),
    Fault("dtype", "a random key", NO_NUMBERS, lambda plot: plot.of(jr.key(0))),
    Fault("dtype", "strings", NO_NUMBERS, lambda plot: plot.of(["a", "b"])),
]
# fmt: on


def seen(what: str, values: Callable[[], Any], bad: str = "nan") -> Fault:
    """Values of which the curve shows that they are not finite."""
    return Fault(bad, what, Shows(), lambda plot: plot.of(values()))


# fmt: off
OF_CURVES = [
    *OF_ARRAYS,
    seen("infinity in one seed", lambda: [[1.0, INF], [1.0, 3.0]]),
    seen("a spread that overflows", lambda: [[1e308] * 2, [1.0, 1.0]], "huge"),
    Fault("empty", "no seeds", Raises(ValueError, "(3, 0)"),
        lambda plot: plot.of(np.ones((3, 0)))),
    Fault("shape", "values of three axes", Raises(ValueError, "(2, 2, 2)"),
        lambda plot: plot.of(np.ones((2, 2, 2)))),
    Fault("shape", "fewer steps than points", Raises(ValueError, "(2,)"),
        lambda plot: plot.of(np.ones(3), steps=np.ones(2))),
    Fault("tree", "seeds of two lengths", Raises(TypeError, "list"),
        lambda plot: plot.of([[1.0, 2.0], [3.0]])),
    Fault("object", "None", Raises(TypeError, "NoneType"), lambda plot: plot.of(None)),
]
PLOTS = Kind("Figures", [
    seen("NaN in the values", lambda: [1.0, NAN, 3.0]),
    Fault("zero", "values of 0", Right(lambda drawn: not drawn.any()),
        lambda plot: plot.of(jnp.zeros(3))),
    Fault("dtype", "integers", Right(lambda drawn: drawn[2] == 2),
        lambda plot: plot.of(jnp.arange(3))),
    Fault("dtype", "values in bfloat16", Right(lambda drawn: drawn[2] == 1),
        lambda plot: plot.of(jnp.ones(3, "bfloat16"))),
], [
    Plot("plot.curves", calls(ok.plot.curves, ax=axes), {"ax": AXES}, faults=OF_CURVES),
    Plot("plot.histogram", calls(ok.plot.histogram, ax=axes),
        {"ax": AXES, "bins": opt.COUNT}, drawn=counts,
        differs={"NaN in the values": Right(lambda counts: counts.sum() == 2),
            **dict.fromkeys(FINITE, Right(lambda counts: counts.sum() == 3))}, faults=[
        *OF_ARRAYS,
        Fault("nan", "only NaN", Raises(ValueError, "finite entry"),
            lambda plot: plot.of(jnp.full(3, NAN))),
    ]),
    Plot("plot.spectrum", calls(spectrum, ax=axes), {"ax": AXES, "width": opt.POSITIVE},
        differs={"NaN in the values": Raises(ValueError, "finite"),
            **dict.fromkeys(FINITE, Right(lambda heights: heights.max() > 0))}, faults=[
        Fault("object", "an array instead of a spectrum", Raises(TypeError, "eigvalsh"),
            lambda plot: ok.plot.spectrum(np.ones(3))),
    ]),
])
# fmt: on


def scan(xs: Any = None, f: Any = None, **options: Any) -> Any:
    """The sum of xs, with no bar."""

    def add(total: Any, x: Any) -> tuple[Any, Any]:
        return total + jnp.sum(x), None

    options = {"report": lambda *_: None} | options
    return ok.scan_with_progress(add if f is None else f, jnp.zeros(()), xs, **options)


@dataclass(frozen=True, kw_only=True)
class Scan(Row):
    """`make(xs, ...)` scans over xs."""

    def with_option(self, name: str, value: Any) -> Any:
        """The sum, with another value of an option."""
        return self.make(jnp.ones(2), **{name: value})


# fmt: off
PROGRESS = Kind("Progress", [
    Fault("nan", "xs of NaN", Shows(), lambda f: f.make(jnp.full(2, NAN))),
    Fault("empty", "xs of no steps", Raises(ValueError, "at least one"),
        lambda f: f.make(jnp.zeros(0))),
    Fault("shape", "leaves of two lengths", Raises(ValueError, "all leaves"),
        lambda f: f.make((jnp.ones(2), jnp.ones(3)))),
    Fault("missing", "neither xs nor length", Raises(ValueError, "length"),
        lambda f: f.make(None)),
], [
    Scan("scan_with_progress", scan,
        {"f": opt.FUNCTION, "show": opt.FUNCTION, "report": opt.FUNCTION,
            "every": opt.COUNT, "length": opt.COUNT}),
])
# fmt: on

KINDS = [PLOTS, PROGRESS]
