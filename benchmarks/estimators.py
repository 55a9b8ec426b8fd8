"""Trace and diagonal by random probes: error and time at equal numbers of products.

Beside matfree and traceax, on the Gauss-Newton matrix of a small network, whose trace
and diagonal are known. All estimators get the same number of products, and all are
repeated with other keys: the error is the root of its mean square.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree

import optkit as ok

from .measure import in_turn, measure
from .peers import peer
from .report import Job, Line, Plot, Result, Role, Table
from .small_network import gauss_newton, small_network

NUM_EXAMPLES = 512
NUM_PRODUCTS = 48  # divisible by two and three: some estimators use products in groups
NUM_KEYS = 32
BUDGETS = (6, 12, 24, 48, 96)
BARE = "the bare products"


class Estimator(NamedTuple):
    """From a curvature and a key to its trace or diagonal, with so many products."""

    call: Callable[[Any, Any], Any]
    role: Role = "ours"


def run(size: int, rounds: int) -> Result:
    """A table for the trace, one for the diagonal, and the error by the products."""
    network = small_network(size, NUM_EXAMPLES)
    C = gauss_newton(network)
    diagonal = np.diagonal(np.asarray(jax.jit(lambda C: C.as_matrix())(C), np.float64))
    tables = [
        _table("Trace", _traces, np.sum(diagonal), C, rounds),
        _table("Diagonal", _diagonals, diagonal, C, rounds),
    ]
    lines: dict[tuple[str, Role], list[float]] = {}
    for budget in BUDGETS:
        for name, estimator in _traces(C, budget).items():
            if estimator.role != "floor":
                error = _error(estimator, C, np.sum(diagonal))
                lines.setdefault((name, estimator.role), []).append(error)
    plot = Plot(
        "estimators",
        "Trace: error by the number of products",
        "products",
        "relative error",
        [Line(name, role, BUDGETS, y) for (name, role), y in lines.items()],
    )
    return Result(tables, plots=[plot])


def _table(title: str, make: Any, exact: Any, C: Any, rounds: int) -> Table:
    estimators = make(C, NUM_PRODUCTS)
    candidates = [
        in_turn(name, [estimator.call], (C, jr.key(0)), estimator.role)
        for name, estimator in estimators.items()
    ]
    errors = {
        name: {"relative error": _error(estimator, C, exact)}
        for name, estimator in estimators.items()
        if estimator.role != "floor"
    }
    title = f"{title}, {NUM_PRODUCTS} products"
    return measure(candidates, rounds).table(title, BARE, extras=errors)


def _error(estimator: Estimator, C: Any, exact: Any) -> float:
    """The root of the mean square over keys, relative."""

    def all_keys(C: Any, keys: Any) -> Any:
        return jax.lax.map(lambda key: ravel_pytree(estimator.call(C, key))[0], keys)

    found = np.asarray(jax.jit(all_keys)(C, jr.split(jr.key(7), NUM_KEYS)), np.float64)
    squares = np.sum((found - exact) ** 2, axis=-1)
    return float(np.sqrt(np.mean(squares) / np.sum(np.square(exact))))


def _bare(k: int) -> Estimator:
    """K products with ready vectors, one after the other."""

    def products(C: Any, key: Any) -> Any:
        del key
        linear = lx.linearise(C)
        z = jax.tree.map(jnp.ones_like, jax.tree.map(_zeros, C.in_structure()))
        return jax.lax.fori_loop(
            0, k, lambda i, z: jax.tree.map(lambda x: 1e-2 * x, linear.mv(z)), z
        )

    return Estimator(products, "floor")


def _traces(C: Any, k: int) -> dict[str, Estimator]:
    del C

    def ours(C: Any, key: Any) -> Any:
        return ok.hutchinson_trace(C, key=key, num_probes=k).mean

    estimators = {BARE: _bare(k), "ok.hutchinson_trace": Estimator(ours, "ours")}
    stochtrace = peer("matfree.stochtrace")
    if stochtrace is not None:
        mean = _in_matfree(
            stochtrace.estimator_monte_carlo,
            stochtrace.monte_carlo_trace(),
            stochtrace.sampler_signs,
            k,
        )
        xtrace = _in_matfree(
            stochtrace.estimator_leave_one_out,
            stochtrace.leave_one_out_xtrace(),
            stochtrace.sampler_normal,
            k // 2,
        )
        estimators["matfree, Hutchinson"] = Estimator(mean, "peer")
        estimators["matfree, XTrace"] = Estimator(xtrace, "peer")
    traceax = peer("traceax")
    if traceax is not None:
        signs = traceax.RademacherSampler(jnp.float32)
        for name, made in (
            ("Hutchinson", traceax.HutchinsonEstimator(signs)),
            ("Hutch++", traceax.HutchPlusPlusEstimator(signs)),
            ("XTrace", traceax.XTraceEstimator()),
        ):
            estimators[f"traceax, {name}"] = Estimator(_in_traceax(made, k), "peer")
    return estimators


def _diagonals(C: Any, k: int) -> dict[str, Estimator]:
    del C

    def ours(C: Any, key: Any) -> Any:
        return ok.hutchinson_diag(C, key=key, num_probes=k).mean

    estimators = {BARE: _bare(k), "ok.hutchinson_diag": Estimator(ours, "ours")}
    stochtrace = peer("matfree.stochtrace")
    if stochtrace is not None:
        mean = _in_matfree(
            stochtrace.estimator_monte_carlo,
            stochtrace.monte_carlo_diagonal(),
            stochtrace.sampler_signs,
            k,
        )
        xdiag = _in_matfree(
            stochtrace.estimator_leave_one_out,
            stochtrace.leave_one_out_xdiag(),
            stochtrace.sampler_normal,
            k // 2,
        )
        estimators["matfree, Hutchinson"] = Estimator(mean, "peer")
        estimators["matfree, XDiag"] = Estimator(xdiag, "peer")
    return estimators


def _in_matfree(make: Any, integrand: Any, sampler: Any, num: int) -> Any:
    def estimate(C: Any, key: Any) -> Any:
        like = jax.tree.map(_zeros, C.in_structure())
        linear = lx.linearise(C)
        return make(integrand, sampler(like, num=num))(linear.mv, key)

    return estimate


def _in_traceax(estimator: Any, k: int) -> Any:
    """Traceax takes operators on flat vectors."""

    def estimate(C: Any, key: Any) -> Any:
        flat, back = ravel_pytree(jax.tree.map(_zeros, C.in_structure()))
        linear = lx.linearise(C)
        operator = lx.FunctionLinearOperator(
            lambda v: ravel_pytree(linear.mv(back(v)))[0],
            jax.ShapeDtypeStruct(flat.shape, flat.dtype),
            lx.symmetric_tag,
        )
        return estimator.estimate(key, operator, k)[0]

    return estimate


def _zeros(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype)


JOB = Job(
    title="Trace and diagonal by random probes",
    run=run,
    size=1_776,
    unit="float32 weights of a small network on digits",
    rounds=10,
    reading=(
        "Every estimator is unbiased, and Hutchinson's are the same in each library: "
        "their errors differ by chance. XTrace and Hutch++ spend a part of the "
        "products on a sketch, which pays where the spectrum decays, as here. They "
        "hold all their probes at once and ravel them, so optkit leaves them to "
        "matfree, whose estimators take `C.mv` as it is. Peers multiply with all "
        "probes at once, which is faster for a small network; optkit takes them one "
        "after the other, in the memory of one."
    ),
)
