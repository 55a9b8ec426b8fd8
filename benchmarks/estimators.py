"""Trace and diagonal by random probes: error and time for equally many products.

The comparison with matfree and traceax uses the Gauss-Newton matrix of a small network,
whose trace and diagonal are known. All estimators get the same number of products. Each
is repeated with several keys; the error is the root mean square.
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

from .measure import called, measure
from .peers import peer
from .report import Job, Line, Plot, Result, Role, Table
from .small_network import gauss_newton, small_network

NUM_EXAMPLES = 512
NUM_PRODUCTS = 48  # some estimators use products in groups of 2 or 3
NUM_KEYS = 16
BUDGETS = (12, 48, 192)
SHOWN = ("ok.hutchinson_trace", "matfree, XTrace")
BARE = "the products alone"


class Estimator(NamedTuple):
    """Maps a curvature and a key to an estimate of its trace or diagonal."""

    call: Callable[[Any, Any], Any]
    role: Role = "ours"


def run(size: int, rounds: int) -> Result:
    """Measures the trace, the diagonal, and the error by the number of products."""
    C = gauss_newton(small_network(size, NUM_EXAMPLES))
    diagonal = np.diagonal(np.asarray(jax.jit(lambda C: C.as_matrix())(C), np.float64))
    trace = np.sum(diagonal)
    tables = [
        _table("Trace", _traces(NUM_PRODUCTS), trace, C, rounds),
        _table("Diagonal", _diagonals(NUM_PRODUCTS), diagonal, C, rounds),
    ]
    shown = {name: e for name, e in _traces(2).items() if name in SHOWN}
    errors: dict[str, list[float]] = {name: [] for name in shown}
    for budget in BUDGETS:
        estimators = _traces(budget)
        for name in errors:
            _, call = called(name, estimators[name].call, (C, jr.key(0)))
            errors[name].append(_error(call, C, trace))
    lines = [Line(name, shown[name].role, BUDGETS, y) for name, y in errors.items()]
    title = "Error of the trace by the number of products"
    plot = Plot("estimators", title, "products", "relative error", lines)
    return Result(tables, plots=[plot])


def _table(
    title: str, estimators: dict[str, Estimator], exact: Any, C: Any, rounds: int
) -> Table:
    candidates, errors = [], {}
    for name, (call, role) in estimators.items():
        candidate, compiled = called(name, call, (C, jr.key(0)), role)
        candidates.append(candidate)
        if role != "floor":
            errors[name] = {"relative error": _error(compiled, C, exact)}
    title = f"{title}, {NUM_PRODUCTS} products"
    return measure(candidates, rounds).table(title, BARE, extras=errors)


def _error(call: Callable[[Any, Any], Any], C: Any, exact: Any) -> float:
    """The relative root-mean-square error over several keys."""
    keys = jr.split(jr.key(7), NUM_KEYS)
    values = [np.asarray(ravel_pytree(call(C, key))[0], np.float64) for key in keys]
    squares = np.sum((np.array(values) - exact) ** 2, axis=-1)
    return float(np.sqrt(np.mean(squares) / np.sum(np.square(exact))))


def _bare(k: int) -> Estimator:
    """Multiplies with k ready vectors, one after the other."""

    def products(C: Any, key: Any) -> Any:
        del key
        linear = lx.linearise(C)
        z = jax.tree.map(jnp.ones_like, jax.tree.map(_zeros, C.in_structure()))
        return jax.lax.fori_loop(
            0, k, lambda i, z: jax.tree.map(lambda x: 1e-2 * x, linear.mv(z)), z
        )

    return Estimator(products, "floor")


def _traces(k: int) -> dict[str, Estimator]:
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


def _diagonals(k: int) -> dict[str, Estimator]:
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
    """Traceax takes operators on flat vectors only."""

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
        "Every estimator is unbiased. Hutchinson's estimator is the same in each "
        "library, so those errors differ only by chance. XTrace and Hutch++ spend part "
        "of their products on a sketch, which pays if the spectrum decays, as here. "
        "They hold all probes at once and ravel them; optkit therefore leaves them to "
        "matfree, whose estimators accept `C.mv` directly. The other libraries "
        "multiply with all probes at once, which is faster for a small network; optkit "
        "takes them one after the other and needs the memory of one."
    ),
)
