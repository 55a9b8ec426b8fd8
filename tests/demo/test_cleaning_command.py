import os

import pytest

from optkit.demo import cleaning, cleaning_command, command as cli
from optkit.demo.cleaners import CLEANERS


@pytest.fixture(autouse=True)
def _small_and_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(cleaning, "REFIT_STEPS", 2)
    monkeypatch.setattr(cleaning_command, "QUICK_STEPS", 1)
    only = {"f2sa": CLEANERS["f2sa"]}
    monkeypatch.setattr(cleaning_command, "CLEANERS", only)


@pytest.mark.usefixtures("standard_promotion")
def test_run_prints_the_table_and_writes_table_and_picture(tmp_path, capsys):
    # Oracle: identity of names in table, CSV and folder.
    assert cli.main(["cleaning", "--quick"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "optkit-cleaning"
    assert sorted(os.listdir(folder)) == ["cleaning.csv", "lowest_weights.png"]
    for name in ("all one", "the truth", "f2sa"):
        assert name in printed
        assert name in (folder / "cleaning.csv").read_text()
    with pytest.raises(SystemExit):  # what is there is never overwritten
        cli.main(["cleaning", "--quick", "--out", "optkit-cleaning"])
    assert "already holds cleaning.csv" in capsys.readouterr().err


def test_interrupt_before_anything_finished_leaves_nothing(
    tmp_path, capsys, monkeypatch
):
    # Oracle: identity, an empty working directory.
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cleaning_command, "judge", interrupt)
    assert cli.main(["cleaning", "--quick"]) == 130
    printed = capsys.readouterr()
    assert "nothing was written" in printed.out
    assert "not finished: f2sa" in printed.err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--seed", "-1"], "whole number from 0"), (["--steps", "3"], "unrecognized")],
)
def test_bad_option_ends_in_one_line_and_code_2(capsys, argv, message):
    # Oracle: identity.
    with pytest.raises(SystemExit) as raised:
        cli.main(["cleaning", *argv])
    assert raised.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("python -m optkit cleaning: error: ")
    assert message in printed


def test_help_explains_every_option_and_lists_the_methods(capsys):
    # Oracle: identity.
    with pytest.raises(SystemExit) as raised:
        cli.main(["cleaning", "--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    for word in ("--out", "--seed", "--quick", "f2sa", "penalty", "soba"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80
