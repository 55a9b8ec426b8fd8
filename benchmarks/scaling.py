"""How the time of a step grows with the number of parameters d and the window m.

Each size is timed separately, and ratios are to the reference of the same size.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import optax

import optkit as ok

from . import adahessian, adan, mfac
from .measure import Candidate, Timing, in_turn, measure
from .network import make_network
from .report import Job, Line, Plot, Result, Row, Table

SMALL_WINDOW = 32
NETWORK_LIMIT = 1_000_000
WINDOWS = (64, 256, 1024)
FACTORISE, APPLY = "ok.Woodbury, factorise", "ok.Woodbury, one vector"


def run_d(size: int, rounds: int) -> Result:
    """Times Adan, M-FAC and AdaHessian with `size` / 1,000 to `size` parameters."""
    sizes = [max(size // factor, 1) for factor in (1000, 30, 1)]
    families = {
        "Adan": (_adan, "optax.adan", sizes),
        f"M-FAC, window {SMALL_WINDOW}": (_mfac, mfac.PASSES, sizes),
        "AdaHessian": (
            _adahessian,
            adahessian.PASS,
            [min(d, NETWORK_LIMIT) for d in sizes],
        ),
    }
    tables, plots = [], []
    for title, (make, reference, ds) in families.items():
        timings = [measure(make(d), rounds) for d in ds]
        tables.append(_joined(title, reference, timings, ds, "parameters"))
        name = f"scaling-{title.split(',')[0].lower()}"
        plots.append(_plot(name, title, timings, ds, "parameters"))
    return Result(tables, plots=plots)


def run_m(size: int, rounds: int) -> Result:
    """Times M-FAC's step and the two parts of Woodbury, by the number of gradients."""
    grads = mfac.gradients(size)
    pairs = [
        measure([mfac.passes(grads, m), mfac.step(grads, m)], rounds) for m in WINDOWS
    ]
    parts = [measure(_woodbury(m, size), max(rounds // 2, 1)) for m in WINDOWS]
    unit = "gradients"
    tables = [
        _joined("M-FAC", mfac.PASSES, pairs, WINDOWS, unit),
        _joined("Static M-FAC", APPLY, parts, WINDOWS, unit),
    ]
    plots = [
        _plot("scaling-window", "M-FAC", pairs, WINDOWS, unit),
        _plot("scaling-woodbury", "Static M-FAC", parts, WINDOWS, unit),
    ]
    return Result(tables, plots=plots)


def _adan(d: int) -> list[Candidate]:
    grads = adan.gradients(d)
    theirs = adan.step("optax.adan", optax.adan(1e-3), grads, "peer")
    return [theirs, adan.step("ok.optim.adan", ok.optim.adan(1e-3), grads)]


def _mfac(d: int) -> list[Candidate]:
    grads = mfac.gradients(d)
    return [mfac.passes(grads, SMALL_WINDOW), mfac.step(grads, SMALL_WINDOW)]


def _adahessian(d: int) -> list[Candidate]:
    params, x, y = make_network(d)
    tx = ok.optim.adahessian(0.1)
    step = adahessian.with_diag(adahessian.ADAHESSIAN, tx, params, x, y)
    return [adahessian.one_pass(params, x, y), step]


def _woodbury(m: int, d: int) -> list[Candidate]:
    rows = jr.normal(jr.key(0), (m, d), jnp.float32)
    x = jr.normal(jr.key(1), (d,), jnp.float32)

    def factorise(rows: Any) -> Any:
        return ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=1e-3)

    P = jax.jit(factorise)(rows)
    return [
        in_turn(APPLY, [lambda P, x: P.solve(x).value], (P, x)),
        in_turn(FACTORISE, [factorise], (rows,)),
    ]


def _joined(
    title: str,
    reference: str,
    timings: Sequence[Timing],
    sizes: Sequence[int],
    unit: str,
) -> Table:
    """Joins the tables of all sizes; the names contain the sizes."""
    rows: list[Row] = []
    for timing, size in zip(timings, sizes, strict=True):
        found = timing.table(title, reference).rows
        rows += [row._replace(name=f"{row.name}, {size:,} {unit}") for row in found]
    return Table(title, reference, rows)


def _plot(
    name: str, title: str, timings: Sequence[Timing], sizes: Sequence[int], unit: str
) -> Plot:
    lines = []
    for candidate in timings[0].candidates:
        rows = [
            timing.table("", candidate.name).row(candidate.name) for timing in timings
        ]
        y = [row.milliseconds for row in rows]
        lines.append(Line(candidate.name, candidate.role, sizes, y))
    return Plot(name, title, unit, "ms", lines)


JOB_D = Job(
    title="Scaling with the number of parameters",
    run=run_d,
    size=10_000_000,
    unit="parameters at most",
    rounds=5,
    reading=(
        "Below some hundred thousand parameters, the time of a step is dominated by "
        "starting its kernels; above, all times are proportional to the number of "
        "parameters. M-FAC adds the Cholesky factorisation of its Gram matrix, whose "
        "cost does not depend on the number of parameters."
    ),
)
JOB_M = Job(
    title="Scaling with the number of gradients held",
    run=run_m,
    size=20_000,
    unit="parameters",
    rounds=5,
    reading=(
        "A step of M-FAC and one vector through Woodbury's identity read the gradients "
        "twice, so their time grows like m. The factorisation of the Gram matrix grows "
        "like m³, which shows for many gradients of few parameters, as here. To "
        "factorise, Woodbury multiplies all pairs of gradients (m² d) and sums in "
        "twice the precision."
    ),
)
