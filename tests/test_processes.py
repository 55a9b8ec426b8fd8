"""Many processes: the same losses and probes as one, and no process is left over.

The processes are real, joined by `jax.distributed`; arrays are split over all of them.
"""

import sys
import time

import pytest

from optkit.demo import command as cli, distributed
from optkit.demo.jobs import JOBS

STEPS = 5


def test_two_processes_train_as_one_does():
    """Oracle: one process with one device. (The command itself takes 50 steps.)

    `import optkit` must not start JAX's backend, or the processes could not join.
    """
    one, many = distributed.launch(2, 2, STEPS, timeout=300)
    rows, is_same = distributed.compare(one, many)
    assert (one["devices"], many["devices"]) == (1, 4)
    assert is_same
    assert [row.optimizer for row in rows] == list(JOBS)
    for row in rows:
        losses = many["runs"][row.optimizer]["losses"]
        assert len(set(losses)) == STEPS
        assert row.difference < 1e-6, row
        assert row.other == 0
    gathered = {row.optimizer: row.gathered for row in rows}
    # The loss gathers 4 (32 * 64 + 64 + 64 * 8 + 8) bytes; a window is 16 times that.
    assert gathered["adan"] == gathered["mfac"] == gathered["adahessian"] == 10528


def test_a_process_that_fails_ends_the_others_and_is_quoted():
    """Oracle: the clock, and the message."""
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    fails = [sys.executable, "-c", "import sys; sys.exit('the last words')"]
    start = time.monotonic()
    with pytest.raises(
        distributed.ProcessError, match=r"process 1 of 2 .*code 1(?s:.*)words"
    ):
        distributed.run_together([sleeps, fails], timeout=50)
    with pytest.raises(distributed.ProcessError, match=r"\[0\] did not end within 0.2"):
        distributed.run_together([sleeps], timeout=0.2)
    assert time.monotonic() - start < 40


def test_the_command_prints_a_table_and_fails_where_losses_or_probes_differ(
    capsys, monkeypatch
):
    """Oracle: identity of names, and the exit code."""
    monkeypatch.setenv("COLUMNS", "80")
    each = ["all-gather", ["f32[2]"], 8, 3, False]

    def runs(loss, probes=1):
        run = {"losses": [1.0, loss], "collectives": [each]}
        return {"runs": {"adan": run}, "probes": probes}

    for many, code in ((runs(0.5), 0), (runs(0.6), 1), (runs(0.5, probes=2), 1)):
        launched = lambda *_, many=many: (runs(0.5), many)  # noqa: E731
        monkeypatch.setattr(distributed, "launch", launched)
        assert cli.main(["distributed"]) == code
    printed = capsys.readouterr().out
    assert "adan" in printed
    assert "24" in printed
    assert "Random probes: different!" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--processes", "1"], "a whole number from 2 to 64"),
        (["--devices", "0"], "a whole number from 1 to 8"),
    ],
)
def test_bad_options_end_in_one_line_and_code_2(capsys, argv, message):
    """Oracle: identity."""
    with pytest.raises(SystemExit) as raised:
        cli.main(["distributed", *argv])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_losses_that_are_not_finite_are_not_close(monkeypatch, capsys):
    """Oracle: the exit code."""
    run = {"losses": [1.0, float("nan")], "collectives": []}
    both = {"runs": {"mfac": run}, "probes": 1}
    monkeypatch.setattr(distributed, "launch", lambda *_: (both, both))
    assert cli.main(["distributed"]) == 1
    assert "not all within" in capsys.readouterr().out
