"""Figures: what is drawn is what NumPy says, in the Axes that were passed."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import optkit as ok


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def spectrum():
    """Ten eigenvalues, of which two probes see four nodes."""
    nodes = jnp.array([[-1.0, 0.0, 2.0, 9.0], [-0.9, 0.1, 1.8, 9.0]])
    weights = jnp.array([[0.1, 0.6, 0.2, 0.1], [0.2, 0.5, 0.2, 0.1]])
    return ok.Spectrum(nodes, weights, jnp.zeros((2, 4)), 10)


def corners(ax):
    """The heights of the last band's outline."""
    return ax.collections[-1].get_paths()[0].vertices[:, 1]


def test_a_curve_is_the_mean_in_a_band_of_one_standard_deviation(ax, rng):
    """Oracle: NumPy."""
    values = rng.normal(size=(6, 4))
    assert ok.plot.curves(values, np.arange(6) * 10, label="four", ax=ax) is ax
    assert_allclose(ax.lines[0].get_xdata(), np.arange(6) * 10)
    assert_allclose(ax.lines[0].get_ydata(), values.mean(axis=1))
    std = values.std(axis=1, ddof=1)
    for edge in (values.mean(axis=1) - std, values.mean(axis=1) + std):
        assert np.isclose(corners(ax)[:, None], edge).any(axis=0).all()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["four"]


def test_a_band_of_positive_values_stays_positive(ax):
    """Oracle: the least value, where mean less standard deviation is negative."""
    ok.plot.curves(np.array([[1.0, 1.0, 50.0], [2.0, 3.0, 4.0]]), ax=ax)
    assert corners(ax).min() == 1.0


def test_one_seed_has_no_band_and_a_diverged_one_leaves_a_gap(ax):
    """Oracle: identity."""
    ok.plot.curves(jnp.array([1.0, 2.0, jnp.nan]), ax=ax)
    assert not ax.collections
    assert np.isnan(ax.lines[0].get_ydata()[2])
    ok.plot.curves([[1.0, 2.0], [np.inf, 1.0]], ax=ax)
    assert not np.isfinite(ax.lines[1].get_ydata()[1])
    assert ax.lines[0].get_color() != ax.lines[1].get_color()


def test_the_density_is_that_of_the_spectrum(ax, spectrum):
    """Oracle: `Spectrum.density`, and the height of the bump of one eigenvalue."""
    ok.plot.spectrum(spectrum, width=0.3, label="H", ax=ax)
    at, heights = ax.lines[0].get_data()
    mean, error = spectrum.density(jnp.asarray(at), 0.3)
    assert_allclose(heights, mean)
    assert np.isclose(corners(ax)[:, None], mean + error).any(axis=0).all()
    assert ax.get_yscale() == "log"
    assert_allclose(ax.get_ylim()[0], 0.1 * 0.1 / (0.3 * (2 * np.pi) ** 0.5))
    assert at[0] < -1 - 3 * 0.3
    assert at[-1] > 9 + 3 * 0.3


def test_a_histogram_counts_all_leaves_and_says_what_is_not_finite(ax):
    """Oracle: NumPy."""
    tree = {"a": jnp.array([0.0, 1.0, 1.0]), "b": [jnp.array(3.0, jnp.bfloat16), None]}
    ok.plot.histogram(tree, bins=3, label="w", ax=ax)
    counts, edges, _ = ax.patches[0].get_data()
    assert_allclose(counts, [1, 2, 1])
    assert_allclose(edges, [0, 1, 2, 3])
    assert len(ax.lines) == 0
    ok.plot.histogram([np.array([1.0, np.nan, np.inf])], bins=3, label="x", ax=ax)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["w", "x (2 more not finite)"]
    assert ax.patches[0].get_facecolor()[:3] != ax.patches[2].get_facecolor()[:3]


def test_new_axes_are_made_where_none_are_passed(spectrum):
    """Oracle: identity; pyplot knows the figure, so a notebook shows it."""
    for made in (
        ok.plot.curves(np.ones((3, 2))),
        ok.plot.spectrum(spectrum),
        ok.plot.histogram(jnp.ones(3)),
    ):
        assert made.figure.number in pyplot.get_fignums()
        pyplot.close(made.figure)


def test_without_matplotlib_the_message_names_the_package(monkeypatch):
    """Oracle: the message."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"`ok.plot`.*pip install matplotlib"):
        ok.plot.curves(np.ones((3, 2)))
