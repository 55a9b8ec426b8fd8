import csv

import numpy as np
import pytest
from rich.console import Console

from optkit.demo.cleaning import Cleaning
from optkit.demo.cleaning_results import (
    CSV_NAME,
    NUM_SHOWN,
    PNG_NAME,
    RIGHT,
    WRONG,
    as_table,
    lowest_weights,
    save,
    summarize,
)


@pytest.fixture
def cleanings(rng):
    """A baseline and a method, three seeds of 40 weights, made up."""

    def one(steps):
        accuracy = rng.uniform(0.8, 0.9, size=(2, 3))
        weights = rng.uniform(size=(3, 40)).astype(np.float32)
        return Cleaning(weights, *accuracy, rng.uniform(size=3), 1.5, steps)

    return {"all one": one(0), "f2sa": one(40)}


@pytest.fixture
def examples(rng):
    """Images, given labels and true labels."""
    return rng.uniform(size=(40, 784)), rng.integers(0, 10, 40), rng.integers(0, 10, 40)


def test_row_holds_mean_and_std_over_the_seeds(cleanings):
    # Oracle: NumPy.
    row = summarize(cleanings)[1]
    run = cleanings["f2sa"]
    np.testing.assert_allclose(row.test_accuracy_mean, run.test_accuracy.mean())
    np.testing.assert_allclose(row.auc_std, run.auc.std(ddof=1))
    assert (row.method, row.steps, row.seeds) == ("f2sa", 40, 3)


def test_table_fits_eighty_columns_and_names_every_method(cleanings, capsys):
    # Oracle: identity.
    Console(width=80).print(as_table(summarize(cleanings)))
    printed = capsys.readouterr().out
    assert "all one" in printed
    assert "f2sa" in printed
    assert "…" not in printed


def test_picture_shows_the_lowest_weights_with_their_labels(cleanings, examples):
    # Oracle: NumPy.
    images, given, true = examples
    figure = lowest_weights(cleanings, images, given, true)
    order = np.argsort(cleanings["f2sa"].weights[0])[:NUM_SHOWN]
    for axes, i in zip(figure.axes[NUM_SHOWN:], order, strict=True):
        shown = axes.get_images()[0].get_array()
        np.testing.assert_array_equal(shown, images[i].reshape(28, 28))
        is_wrong = given[i] != true[i]
        wanted = f"{given[i]} → {true[i]}" if is_wrong else f"{given[i]}"
        assert axes.get_title() == wanted
        assert axes.title.get_color() == (WRONG if is_wrong else RIGHT)


def test_files_hold_all_methods_and_never_replace_others(cleanings, examples, tmp_path):
    # Oracle: identity.
    files = save(cleanings, tmp_path, *examples)
    assert [file.name for file in files] == [CSV_NAME, PNG_NAME]
    with (tmp_path / CSV_NAME).open(encoding="utf-8") as file:
        assert [row["method"] for row in csv.DictReader(file)] == list(cleanings)
    with pytest.raises(FileExistsError):
        save(cleanings, tmp_path, *examples)


def test_baselines_alone_make_no_picture(cleanings, examples, tmp_path):
    # Oracle: identity.
    files = save({"all one": cleanings["all one"]}, tmp_path, *examples)
    assert [file.name for file in files] == [CSV_NAME]
