"""The benchmark command: its statistics, its floors and its files."""

import math

import jax
import numpy as np
import pytest
from precision import assert_allclose

from benchmarks import __main__ as command, machine, measure
from benchmarks.adan import TREES_MOVED, adan_bytes
from benchmarks.jobs import JOBS
from benchmarks.measure import Candidate
from benchmarks.network import loss, make_network, pass_flops
from benchmarks.page import write_page
from benchmarks.report import (
    NAN,
    Done,
    Floor,
    Line,
    Memory,
    Plot,
    Result,
    Row,
    Session,
    Table,
    Target,
    at_most,
    load,
    save,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only advances when a test says so."""
    now = [0.0]
    monkeypatch.setitem(measure.CLOCKS, "wall", lambda: now[0])
    return now


@pytest.fixture
def session():
    """A session with one job: a table, a target of each verdict, and a plot."""
    memory = Memory(4e6, 2e6, 1e6, 3e6)
    rows = [
        Row("optax.adan", "peer", 2.0, 1.0, 1.0, 1.0),
        Row(
            "ok.optim.adan", "ours", 3.0, 1.5, 1.25, 1.75, 0.5, memory, {"error": 1e-7}
        ),
    ]
    table = Table("A table", "optax.adan", rows, Floor(1e6, 0.0, 1e9, 1e12))
    targets = [
        at_most(2.0, rows[1], "Held", "never shown"),
        at_most(1.0, rows[1], "Not held", "Two passes where one would do."),
        at_most(1.0, NAN, "Of a peer that is not here"),
    ]
    plot = Plot(
        "growth", "Growth", "d", "ms", [Line("ok", "ours", [1.0, 2.0], [3.0, NAN])]
    )
    result = Result([table], targets, [plot], ["Without torch."])
    return Session("a machine", "wall", [Done("adan", 7, 1.5, result)], 2.5)


def test_a_ratio_is_taken_within_a_round(clock):
    """Oracle: closed form. A machine that slows down does not change the ratios."""
    order = []

    def taking(name, seconds):
        def run(carry):
            slowness = 2 ** (len(order) // 2)  # the next round takes twice as long
            clock[0] += seconds * slowness
            order.append(name)
            return carry + 1

        return Candidate(name, run, 0)

    timing = measure.measure([taking("one", 1.0), taking("two", 3.0)], 3)
    rounds = [order[i : i + 2] for i in range(0, 8, 2)]
    assert all(sorted(each) == ["one", "two"] for each in rounds)
    assert ["one", "two"] in rounds  # neither is always first
    assert ["two", "one"] in rounds
    assert_allclose(
        timing.times, [[2, 6], [4, 12], [8, 24]]
    )  # without the warm-up round
    row = timing.table("", "one").row("two")
    assert (row.ratio, row.low, row.high, row.milliseconds) == (3, 3, 3, 12_000)


def test_quartiles_and_means_of_rounds_are_those_of_numpy():
    """Oracle: closed form, ratios 1 to 5 in five rounds."""
    candidates = [Candidate(name, None, None) for name in ("a", "b")]
    times = np.array([[1.0, 1.0], [2.0, 4.0], [4.0, 12.0], [8.0, 32.0], [16.0, 80.0]])
    timing = measure.Timing(candidates, times)
    row = timing.table("", "a", extras={"b": {"error": 0.1}}).row("b")
    assert (row.ratio, row.low, row.high) == (3, 2, 4)
    assert row.milliseconds == 12000
    assert row.extra == {"error": 0.1}
    means = measure.Timing(candidates, times[:4]).mean_of(2)
    assert_allclose(means.times, [[1.5, 2.5], [6.0, 22.0]])
    assert math.isnan(timing.table("", "a").row("no such").ratio)


def test_the_flops_of_a_pass_are_those_of_its_products():
    """Oracle: the products in the traced program, counted one by one."""
    params, x, y = jax.eval_shape(lambda: make_network(20_000))

    def one_pass(p, x, y):
        return jax.jvp(lambda p: jax.value_and_grad(loss)(p, x, y), (p,), (p,))

    with jax.numpy_dtype_promotion("standard"):
        traced = jax.make_jaxpr(one_pass)(params, x, y)
    assert pass_flops(params) == _product_flops(traced.jaxpr)


def _product_flops(jaxpr):
    """Adds 2 b m n for each `dot_general`, including those in called functions."""
    flops = 0
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            flops += _product_flops(inner) if hasattr(inner, "eqns") else 0
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            flops += 2 * math.prod(out) * math.prod(left[i] for i in contracted)
    return flops


def test_a_floor_is_the_longer_of_moving_and_multiplying():
    """Oracle: closed form; Adan moves eleven trees of four bytes an entry."""
    assert adan_bytes(100) == 4 * 100 * TREES_MOVED == 4400
    assert_allclose(Floor(1e9, 1e9, 1e9, 1e10).milliseconds, 1000)
    assert_allclose(Floor(1e9, 1e11, 1e9, 1e10).milliseconds, 10_000)


def test_a_target_is_met_missed_or_not_measured(session):
    """Oracle: the definition."""
    verdicts = [target.verdict for target in session.done[0].result.targets]
    assert verdicts == ["met", "missed", "not measured"]
    assert Target("at the limit", 1.0, 1.0).verdict == "met"
    close = Target("nearly", 1.0, 1.1, low=0.9, high=1.2)
    assert close.verdict == "missed, within the spread"


def test_peak_counts_outputs_in_the_place_of_arguments_once():
    """Oracle: closed form."""
    assert Memory(4.0, 2.0, 1.0, 3.0).peak == 8.0


def test_json_brings_back_all_of_a_session(session, tmp_path):
    """Oracle: identity, including NaN."""
    save(session, tmp_path / "run.json")
    again = load(tmp_path / "run.json")
    assert repr(again) == repr(session)
    assert again.done[0].result.tables[0].rows[1].memory.peak == 8e6


def test_the_page_says_why_a_target_is_missed(session, tmp_path):
    """Oracle: identity of texts and numbers; the same run gives the same bytes."""
    page, plot = write_page(session, tmp_path / "performance.md")
    text = page.read_text()
    assert (
        "| ok.optim.adan | 3.0 | 1.50 (1.25 to 1.75) | 3.0 | 0.50 | 8.0 | 3.0 |" in text
    )
    assert "*Not held.* Two passes where one would do." in text
    assert "never shown" not in text
    assert "1 met; 1 missed; 0 missed, within the spread; 1 not measured" in text
    assert JOBS["adan"].reading in text
    assert "![Growth](performance/growth.svg)" in text
    before = plot.read_bytes()
    write_page(session, tmp_path / "performance.md")
    assert plot.read_bytes() == before


@pytest.mark.usefixtures("standard_promotion")
def test_a_job_runs_and_is_kept_and_shown(tmp_path, capsys, monkeypatch):
    """Oracle: identity of the output of the run and of its file."""
    monkeypatch.setattr(machine, "COPY_BYTES", 4096)
    monkeypatch.setattr(machine, "MATMUL_SIZE", 8)
    kept = tmp_path / "run.json"
    argv = ["--job", "adan", "--size", "100", "--rounds", "1", "--json", str(kept)]
    assert command.main(argv) == 0
    now = capsys.readouterr().out
    assert "ok.optim.adan, proximal decay" in now
    assert "Floor: " in now
    assert command.main(["--show", str(kept)]) == 0
    assert now.split("─\n")[1].split("Wrote")[0] in capsys.readouterr().out


def test_a_job_that_fails_does_not_take_the_others_with_it(capsys, monkeypatch):
    """Oracle: identity of the exit code and of the message."""

    def broken(size, rounds):
        raise FloatingPointError("no luck")

    monkeypatch.setitem(JOBS, "diag", JOBS["diag"]._replace(run=broken))
    fine = JOBS["mfac"]._replace(run=lambda size, rounds: Result(remarks=["Fine."]))
    monkeypatch.setitem(JOBS, "mfac", fine)
    assert command.main(["--job", "diag", "mfac"]) == 1
    printed = capsys.readouterr().out
    assert "Failed: FloatingPointError: no luck" in printed
    assert "Fine." in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "3"], "argument --size: needs exactly one --job"),
        (["--job", "adan", "mfac", "--size", "3"], "needs exactly one --job"),
        (["--rounds", "0"], "needs a whole number from 1, got '0'"),
        (["--job", "adam"], "invalid choice: 'adam'"),
        (["--show", "no-such.json"], "argument --show: no such file: no-such.json"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(argv, message, capsys):
    """Oracle: identity."""
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last
