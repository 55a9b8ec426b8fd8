"""Products with an inverse, (C + λI)⁻¹ b: every method against a dense Cholesky factor.

The two curvatures belong to one small network: the empirical Fisher matrix of 512
examples, which has low rank, and their Gauss-Newton matrix, which is only known by its
products. The errors are relative to a float64 solve by NumPy.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import lineax as lx
import numpy as np
from jax.flatten_util import ravel_pytree

import optkit as ok

from .machine import floor
from .measure import Candidate, called, measure, memory_of
from .report import Job, Result, Table, at_most
from .small_network import fisher, gauss_newton, small_network

NUM_EXAMPLES = 512
DAMPING, RTOL, RANK, NUM_TERMS = 1e-2, 1e-5, 100, 300
DENSE = "dense matrix and Cholesky"
BIG_ROWS, BIG_SIZE = 1024, 1_000_000

Solver = Callable[[Any, Any], Any]  # of the curvature and b


class Method(NamedTuple):
    """A way to (C + λI)⁻¹ b: the work done once, and the work for each b."""

    factorise: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    is_peer: bool = False
    has_factor: bool = True


def run(size: int, rounds: int) -> Result:
    """Makes two tables for each curvature: with and without the factorisation."""
    low_rank = fisher(small_network(size, NUM_EXAMPLES))
    products = gauss_newton(small_network(size, NUM_EXAMPLES))
    some = _methods()
    title = f"Fisher matrix of {NUM_EXAMPLES} examples"
    tables, remarks = _tables(title, low_rank, _low_rank(some), rounds)
    more = _tables("Gauss-Newton matrix", products, _by_products(some), rounds)
    sentence = (
        "Factorising 1,024 × 1,000,000 float32 rows and applying the inverse takes at "
        "most 1.2 × the memory of the rows"
    )
    target = at_most(1.2, _big_memory(), sentence)
    return Result([*tables, *more[0]], [target], remarks=[*remarks, *more[1]])


def _tables(
    title: str, curvature: Any, methods: dict[str, Method], rounds: int
) -> tuple[list[Table], list[str]]:
    b = _right_hand_side(curvature)
    exact = _exact(curvature, b)
    whole, further, errors, remarks = [], [], {}, []
    for name, method in methods.items():
        candidate, again, error = _candidates(name, method, curvature, b, exact)
        if not math.isfinite(error):
            reason = "because its compiled solution is not finite"
            remarks.append(f"{title}: {name} is left out, {reason}.")
            continue
        whole.append(candidate)
        further += again
        errors[name] = {"relative error": error}
    dense = floor(flops=ravel_pytree(b)[0].size ** 3 / 3)
    first = f"{title}: factorise and solve for one vector"
    second = f"{title}: each further vector, for methods that factorise"
    tables = [
        measure(whole, rounds).table(first, DENSE, None, dense, errors),
        measure(further, rounds).table(second, DENSE, None, None, errors),
    ]
    return tables, remarks


def _candidates(
    name: str, method: Method, curvature: Any, b: Any, exact: np.ndarray
) -> tuple[Candidate, list[Candidate], float]:
    """The whole method, its part for a further vector (if less), and its error."""
    role = "peer" if method.is_peer or name == DENSE else "ours"
    if not method.has_factor:

        def both(C: Any, b: Any) -> Any:
            return method.apply(method.factorise(C), b)

        whole, solve = called(name, both, (curvature, b), role)
        return whole, [], _error(solve(curvature, b), exact)
    first, factorise = called(name, method.factorise, (curvature,), role)
    factor = factorise(curvature)
    again, apply = called(name, method.apply, (factor, b), role)

    def run(carry: Any) -> Any:
        jax.block_until_ready(apply(factorise(curvature), b))
        return carry

    seconds = first.compile_seconds + again.compile_seconds
    whole = first._replace(run=run, compile_seconds=seconds)
    return whole, [again], _error(apply(factor, b), exact)


def _error(found: Any, exact: np.ndarray) -> float:
    flat = np.asarray(ravel_pytree(found)[0], np.float64)
    return float(np.linalg.norm(flat - exact) / np.linalg.norm(exact))


def _low_rank(some: dict[str, Method]) -> dict[str, Method]:
    return {
        DENSE: some[DENSE],
        "ok.Woodbury (static M-FAC)": _ours(ok.Woodbury()),
        **{name: method for name, method in some.items() if name != DENSE},
    }


def _by_products(some: dict[str, Method]) -> dict[str, Method]:
    preconditioned = Method(_preconditioned, lambda P, b: P.solve(b).value)
    name = f"ok.CG, Nyström preconditioner of rank {RANK}"
    return {**some, name: preconditioned}


def _methods() -> dict[str, Method]:
    conjugate = _ours(ok.CG(RTOL, max_steps=1000))
    by_scipy = partial(_flat_cg, jsp.sparse.linalg.cg)
    return {
        DENSE: Method(_dense_factor, _dense_apply),
        f"ok.CG({RTOL:.0e})": conjugate._replace(has_factor=False),
        f"ok.Neumann({NUM_TERMS})": _ours(ok.Neumann(NUM_TERMS)),
        f"ok.Nystrom({RANK})": _ours(ok.Nystrom(RANK, key=jr.key(0))),
        f"lineax.CG({RTOL:.0e})": Method(_itself, _lineax_cg, True, False),
        f"jax.scipy's cg({RTOL:.0e})": Method(_itself, by_scipy, True, False),
    }


def _itself(C: Any) -> Any:
    return C


def _ours(solver: Any) -> Method:
    return Method(
        lambda C: ok.invert(C, solver, damping=DAMPING), lambda P, b: P.solve(b).value
    )


def _preconditioned(C: Any) -> Any:
    sketch = ok.invert(C, ok.Nystrom(RANK, key=jr.key(0)), damping=DAMPING)
    solver = ok.CG(RTOL, preconditioner=ok.nystrom_preconditioner(sketch))
    return ok.invert(C, solver, damping=DAMPING)


def _dense_factor(C: Any) -> Any:
    matrix = C.as_matrix()
    return jnp.linalg.cholesky(matrix + DAMPING * jnp.eye(len(matrix)))


def _dense_apply(factor: Any, b: Any) -> Any:
    flat, back = ravel_pytree(b)
    return back(jsp.linalg.cho_solve((factor, True), flat))


def _lineax_cg(C: Any, b: Any) -> Any:
    solver = lx.CG(RTOL, 0.0, max_steps=1000)
    operator = ok.Damped(C, DAMPING)
    return lx.linear_solve(operator, b, solver, throw=False).value


def _flat_cg(solve: Any, C: Any, b: Any) -> Any:
    linear = lx.linearise(C)
    flat, back = ravel_pytree(b)

    def product(v: Any) -> Any:
        return ravel_pytree(linear.mv(back(v)))[0] + DAMPING * v

    return back(solve(product, flat, tol=RTOL, maxiter=1000)[0])


def _right_hand_side(curvature: Any) -> Any:
    """A vector that is half in the range of the curvature, half anywhere."""
    structure = curvature.in_structure()
    leaves, treedef = jax.tree.flatten(structure)
    keys = jr.split(jr.key(3), len(leaves))
    anywhere = treedef.unflatten(
        [jr.normal(k, s.shape, s.dtype) for k, s in zip(keys, leaves, strict=True)]
    )
    inside = jax.jit(lambda C, x: C.mv(x))(curvature, anywhere)
    norms = [
        math.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(t)))
        for t in (anywhere, inside)
    ]
    return jax.tree.map(lambda a, c: a / norms[0] + c / norms[1], anywhere, inside)


def _exact(curvature: Any, b: Any) -> np.ndarray:
    """A dense solve in float64, with the matrix from its own float32 products."""
    matrix = np.asarray(jax.jit(lambda C: C.as_matrix())(curvature), np.float64)
    damped = 0.5 * (matrix + matrix.T) + DAMPING * np.eye(len(matrix))
    return np.linalg.solve(damped, np.asarray(ravel_pytree(b)[0], np.float64))


def _big_memory() -> float:
    """The compiler's peak memory divided by that of the rows; nothing is run."""

    def solve(rows: Any, x: Any) -> Any:
        P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=DAMPING)
        return P.solve(x).value

    rows = jax.ShapeDtypeStruct((BIG_ROWS, BIG_SIZE), jnp.float32)
    x = jax.ShapeDtypeStruct((BIG_SIZE,), jnp.float32)
    memory = memory_of(jax.jit(solve).lower(rows, x).compile())
    return math.nan if memory is None else memory.peak / (4.0 * BIG_ROWS * BIG_SIZE)


JOB = Job(
    title="Products with an inverse",
    run=run,
    size=1_776,
    unit="float32 weights of a small network on digits",
    rounds=5,
    reading=(
        "At these settings the methods do not compute the same thing: the error column "
        "shows how far each one is from the exact inverse at λ = 0.01. Woodbury is "
        "exact for a Fisher matrix and costs two passes over its rows for each further "
        "vector. A Neumann series and a sketch are approximations by design, so their "
        "errors are not failures. For many vectors, a dense factor is the fastest as "
        "long as it fits, which ends at some ten thousand weights. jaxopt's conjugate "
        "gradients are those of jax.scipy."
    ),
)
