import numpy as np
import pytest

from optkit.demo.plots import COLORS, learning_curves


def test_curves_are_the_means_and_bands_one_std_around_them(runs):
    # Oracle: NumPy.
    loss_axes, accuracy_axes = learning_curves(runs).axes
    for line, run in zip(accuracy_axes.lines, runs.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), run.test_accuracy.mean(axis=-1))
    run = runs["adan"]
    mean, std = run.train_loss.mean(axis=-1), run.train_loss.std(axis=-1, ddof=1)
    band = loss_axes.collections[1].get_paths()[0].vertices[:, 1]
    expected = np.concatenate([mean - std, mean + std])
    assert np.isclose(band[:, None], expected, rtol=1e-5).any(axis=0).all()
    assert loss_axes.get_yscale() == "log"


def test_legend_names_every_optimizer_and_colors_differ(runs):
    # Oracle: identity.
    axes = learning_curves(runs).axes[1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(runs)
    assert len(set(COLORS)) == len(COLORS)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_diverged_or_perfect_loss_still_draws(runs, tmp_path, value):
    # Oracle: identity, no warning becomes an error and a file appears.
    runs["adan"].train_loss[5:] = value
    learning_curves(runs).savefig(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
