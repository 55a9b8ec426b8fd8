"""A scan that reports: it computes what `lax.scan` does, and reports when due."""

import io
import sys

import jax
import jax.numpy as jnp
import pytest
from numpy.testing import assert_array_equal

import optkit as ok

XS = jnp.arange(10.0)


def body(carry, x):
    carry = 0.9 * carry + x
    return carry, carry**2


def run(reports=None, *, every=4, init=0.5, **options):
    """A scan whose reports are collected."""

    def report(done, total, shown):
        reports.append((done, total, {k: a.item() for k, a in shown.items()}))

    report = None if reports is None else report
    return ok.scan_with_progress(body, init, XS, every=every, report=report, **options)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_it_is_lax_scan_and_reports_when_due(wrap):
    """Oracle: `lax.scan`, and the values at those steps."""
    reports = []
    want = jax.lax.scan(body, 0.5, XS)
    got = wrap(lambda: run(reports, show=lambda carry, y: {"y": y, "carry": carry}))()
    jax.effects_barrier()
    assert_array_equal(got[0], want[0])
    assert_array_equal(got[1], want[1])
    assert [(done, total) for done, total, _ in reports] == [
        (1, 10), (4, 10), (8, 10), (10, 10)
    ]  # fmt: skip
    assert [shown["y"] for _, _, shown in reports] == [
        *want[1][jnp.array([0, 3, 7, 9])]
    ]
    assert reports[-1][2]["carry"] == want[0]


def test_derivatives_are_those_of_lax_scan():
    """Oracle: `lax.scan`."""
    got = jax.grad(lambda c: run([], init=c)[1].sum())(0.5)
    want = jax.grad(lambda c: jax.lax.scan(body, c, XS)[1].sum())(0.5)
    assert_array_equal(got, want)


def test_the_default_interval_is_a_hundredth_and_length_will_do():
    """Oracle: closed form."""
    seen = []
    ok.scan_with_progress(
        lambda c, _: (c, None),
        0,
        length=250,
        report=lambda done, total, shown: seen.append(done),
    )
    jax.effects_barrier()
    assert seen == [1, *range(2, 251, 2)]


def test_without_a_terminal_a_few_lines_are_printed(capfd):
    """Oracle: the lines; a second run starts anew; vmap says it once."""
    members = jax.jit(jax.vmap(lambda c: run(init=c, show=lambda c, y: {"carry": c})))
    for _ in range(2):
        members(jnp.zeros(3))
        jax.effects_barrier()
    lines = capfd.readouterr().err.splitlines()
    assert [line.split(",")[0].split("  ")[0] for line in lines] == 2 * [
        "scan: 1/10", "scan: 4/10", "scan: 8/10", "scan: 10/10"
    ]  # fmt: skip
    assert "s left  carry 5.61" in lines[1]


def test_on_a_terminal_rich_draws_the_bar(monkeypatch):
    """Oracle: what is on the terminal at the end."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    run(label="train", show=lambda carry, y: {"loss": y})
    jax.effects_barrier()
    last = sys.stderr.getvalue().split("train")[-1]
    assert "10/10" in last
    assert "loss" in last
