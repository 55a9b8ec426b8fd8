import os
import signal
import subprocess
import sys

import jax
import optax
import pytest

from optkit.demo import command as cli, terminal
from optkit.demo.optimizers import OPTIMIZERS

TINY = ["--quick", "--steps", "3"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def _promotion_of_optax():
    """Optax's AdamW and schedules mix dtypes; strict promotion is for our code."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _interrupt(steps):
    raise KeyboardInterrupt


def _signal(steps):
    signal.raise_signal(signal.SIGINT)  # held until the next report
    return optax.sgd(0.1)


@pytest.mark.usefixtures("_promotion_of_optax")
def test_run_prints_the_table_and_writes_both_files(tmp_path, capsys, monkeypatch):
    # Oracle: identity of names in table, CSV and folder. SGD replaces all optimizers
    # here; `.ci/run` trains with the real ones and compares these names, too.
    for name in OPTIMIZERS:
        monkeypatch.setitem(OPTIMIZERS, name, lambda steps: optax.sgd(0.1))
    assert cli.main([*TINY, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    folder = tmp_path / "optkit-demo"
    assert sorted(os.listdir(folder)) == ["learning_curves.png", "results.csv"]
    for name in OPTIMIZERS:
        assert name in printed
        assert name in (folder / "results.csv").read_text()
    assert "Wrote optkit-demo/results.csv" in printed


@pytest.mark.usefixtures("_promotion_of_optax")
def test_interrupt_keeps_what_was_finished(tmp_path, capsys, monkeypatch):
    # Oracle: identity, the first optimizer's row and no other.
    monkeypatch.setitem(OPTIMIZERS, "stop", _interrupt)
    argv = [*TINY, "--optimizers", "adan,stop adamw", "--out", "kept"]
    assert cli.main(argv) == 130
    printed = capsys.readouterr()
    assert "not finished: stop, adamw" in printed.err
    lines = (tmp_path / "kept" / "results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["optimizer", "adan"]
    assert (tmp_path / "kept" / "learning_curves.png").exists()


def test_interrupt_before_anything_finished_leaves_nothing(
    tmp_path, capsys, monkeypatch
):
    # Oracle: identity, an empty working directory.
    monkeypatch.setitem(OPTIMIZERS, "stop", _signal)
    monkeypatch.setattr(terminal, "GRACE", 1e6)  # or it would end this process
    assert cli.main([*TINY, "--optimizers", "stop"]) == 130
    assert "nothing was written" in capsys.readouterr().out
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--optimizers", "adamm"], "did you mean adamw?"),
        (["--optimizers", "newton"], "there are adamw, adan"),
        (["--optimizers", "adan", "adan"], "adan is given twice"),
        (["--optimizers", ","], "needs a name"),
        (["--optimizers"], "expected at least one argument"),
        (["--steps", "0"], "whole number from 1 to 1000000, got '0'"),
        (["--steps", "-5"], "got '-5'"),
        (["--steps", "1e3"], "got '1e3'"),
        (["--seed", "x"], "whole number from 0"),
        (["--out", "file"], "'file' is not a folder"),
        (["--out", "file/below"], "Not a directory"),
        (["--out", "done"], "already holds results.csv"),
        (["--typo"], "unrecognized arguments: --typo"),
    ],
)
def test_bad_option_ends_in_one_line_and_code_2(tmp_path, capsys, argv, message):
    # Oracle: identity of text and code; no file appears.
    (tmp_path / "file").touch()
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "results.csv").touch()
    with pytest.raises(SystemExit) as raised:
        cli.main(argv)
    assert raised.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("python -m optkit: error: ")
    assert message in printed.err
    assert sorted(os.listdir(tmp_path)) == ["done", "file"]


def test_help_explains_every_option_and_lists_the_optimizers(capsys):
    # Oracle: identity.
    with pytest.raises(SystemExit) as raised:
        cli.main(["--help"])
    assert raised.value.code == 0
    printed = capsys.readouterr().out
    for word in ("--out", "--seed", "--steps", "--optimizers", "--quick", *OPTIMIZERS):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize("module", ["rich", "matplotlib", "mlxtend"])
def test_missing_extra_is_one_line_that_says_what_to_install(module):
    # Oracle: identity; a None in sys.modules makes the import fail.
    hide = f"import sys, runpy; sys.modules[{module!r}] = None; "
    code = hide + "runpy.run_module('optkit', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install matplotlib mlxtend rich scikit-learn" in done.stderr
    assert done.stderr.count("\n") == 1


def test_import_of_the_package_pulls_in_no_extra():
    # Oracle: identity, of the modules after `import optkit` with the extras' names.
    code = (
        "import sys, optkit; "
        "print({'rich', 'matplotlib', 'mlxtend', 'sklearn', 'optkit.demo'} "
        "& set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def _after_ctrl_c(command, mark, environment=None):
    """The exit code and the last lines of a command, with Ctrl-C after a mark."""
    environment = os.environ | (environment or {})
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        while mark not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        last = process.stderr.read()
    return process.returncode, last


def test_ctrl_c_during_the_import_is_one_line():
    # Oracle: the line and 130. Python prints a line for each module that it imports.
    code, last = _after_ctrl_c(
        [sys.executable, "-m", "optkit"], "jax", {"PYTHONPROFILEIMPORTTIME": "1"}
    )
    own = [line for line in last.splitlines() if "import time:" not in line]
    assert (code, own) == (130, ["Stopped by Ctrl-C."])


def test_ctrl_c_during_a_compilation_ends_at_once():
    # Oracle: the text and 130, while the main thread is in C for an hour.
    program = """
import hashlib, sys
from optkit.demo.terminal import held_interrupt
with held_interrupt(lambda: print("saved", file=sys.stderr)):
    print("ready", file=sys.stderr, flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""
    got = _after_ctrl_c([sys.executable, "-c", program], "ready")
    assert got == (130, "saved\n")
