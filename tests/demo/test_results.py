import csv
import io
import os

import numpy as np
import pytest
from rich.console import Console

from optkit.demo.results import as_table, claim_folder, save, summarize


def test_rows_hold_the_last_point_of_each_run(runs):
    # Oracle: NumPy.
    row = summarize(runs)[1]
    last = runs["adan"].train_loss[-1]
    assert row.optimizer == "adan"
    np.testing.assert_allclose(row.train_loss_mean, last.mean(), rtol=1e-6)
    np.testing.assert_allclose(row.train_loss_std, last.std(ddof=1), rtol=1e-6)
    assert (row.ms_per_step, row.seconds) == (25.0, 2.0)
    assert (row.steps, row.seeds) == (20, 3)


def test_table_fits_eighty_columns(runs):
    # Oracle: identity, nothing is cut off with an ellipsis.
    out = io.StringIO()
    Console(file=out, width=80).print(as_table(summarize(runs)))
    text = out.getvalue()
    assert "…" not in text
    assert all(word in text for word in ("adamw", "adan", "±", "25.00", "over 3 seeds"))


def test_csv_holds_the_rows_of_the_table(runs, tmp_path):
    # Oracle: identity after a round trip.
    table, figure = save(runs, tmp_path)
    with table.open(newline="") as file:
        got = list(csv.DictReader(file))
    for line, row in zip(got, summarize(runs), strict=True):
        assert line["optimizer"] == row.optimizer
        assert float(line["train_loss_mean"]) == pytest.approx(row.train_loss_mean)
        assert float(line["ms_per_step"]) == row.ms_per_step
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_results_are_never_overwritten(runs, tmp_path):
    # Oracle: identity of the bytes.
    table, _ = save(runs, tmp_path)
    before = table.read_bytes()
    with pytest.raises(FileExistsError):
        save({"adan": runs["adan"]}, tmp_path)
    assert table.read_bytes() == before
    with pytest.raises(FileExistsError, match=r"already holds results\.csv"):
        claim_folder(str(tmp_path))


def test_default_folder_is_the_next_free_one(tmp_path, monkeypatch):
    # Oracle: closed form.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "optkit-demo-2").touch()  # a file takes the name as well
    names = [str(claim_folder(None)) for _ in range(3)]
    assert names == ["optkit-demo", "optkit-demo-3", "optkit-demo-4"]


def test_chosen_folder_may_exist_and_may_be_deep(tmp_path):
    # Oracle: identity.
    deep = tmp_path / "a" / "b"
    assert claim_folder(str(deep)) == deep
    (deep / "notes.txt").touch()
    assert claim_folder(str(deep)) == deep
    assert os.listdir(deep) == ["notes.txt"]


@pytest.mark.parametrize("out", ["", "file", "file/below"])
def test_what_cannot_be_a_folder_is_refused(tmp_path, monkeypatch, out):
    # Oracle: identity.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"not a folder|Not a directory"):
        claim_folder(out)
