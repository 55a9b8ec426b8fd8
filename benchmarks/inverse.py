"""Products with an inverse, (C + λI)⁻¹ b: every method beside a dense Cholesky factor.

Two curvatures of one small network: the empirical Fisher matrix of 512 examples, which
is of low rank, and the Gauss-Newton matrix of all of them, which is known by its
products alone. Errors are to a float64 solve by NumPy.
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
from .measure import Candidate, Timing, in_turn, measure, memory_of
from .peers import peer
from .report import Job, Result, Table, at_most
from .small_network import fisher, gauss_newton, small_network

NUM_FISHER, NUM_ALL = 512, 1700
DAMPING, RTOL, RANK, NUM_TERMS = 1e-3, 1e-5, 100, 100
DENSE = "dense matrix and Cholesky"
BIG_ROWS, BIG_SIZE = 1024, 1_000_000

Solver = Callable[[Any, Any], Any]  # of the curvature and b


class Method(NamedTuple):
    """A way to (C + λI)⁻¹ b: all the work, and what remains for the next b."""

    factorise: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]
    is_peer: bool = False


def run(size: int, rounds: int) -> Result:
    """Two tables for each curvature: with the factorisation, and without it."""
    low_rank = fisher(small_network(size, NUM_FISHER))
    products = gauss_newton(small_network(size, NUM_ALL))
    some = _methods()
    tables = [
        *_tables("Fisher matrix of 512 examples", low_rank, _low_rank(some), rounds),
        *_tables("Gauss-Newton matrix", products, _by_products(some), rounds),
    ]
    limit = "1,024 × 1,000,000 float32 rows factorise and apply within their memory"
    target = at_most(1.2, _big_memory(), f"{limit} and a fifth of it")
    return Result(tables, [target])


def _tables(
    title: str, curvature: Any, methods: dict[str, Method], rounds: int
) -> list[Table]:
    b = _right_hand_side(curvature)
    exact = _exact(curvature, b)
    whole, apply, errors = [], [], {}
    for name, method in methods.items():
        candidate, again, error = _candidates(name, method, curvature, b, exact)
        whole.append(candidate)
        apply.append(again)
        errors[name] = {"relative error": error}
    timings: tuple[Timing, Timing] = measure(whole, rounds), measure(apply, rounds)
    n = ravel_pytree(b)[0].size
    dense = floor(flops=n**3 / 3)
    return [
        timings[0].table(
            f"{title}, one vector, all included", DENSE, None, dense, errors
        ),
        timings[1].table(f"{title}, each further vector", DENSE, None, None, errors),
    ]


def _candidates(
    name: str, method: Method, curvature: Any, b: Any, exact: np.ndarray
) -> tuple[Candidate, Candidate, float]:
    role = "peer" if method.is_peer or name == DENSE else "ours"

    def whole(curvature: Any, b: Any) -> Any:
        return method.apply(method.factorise(curvature), b)

    factor = jax.jit(method.factorise)(curvature)
    candidate = in_turn(name, [whole], (curvature, b), role)
    again = in_turn(name, [method.apply], (factor, b), role)
    found = ravel_pytree(jax.jit(whole)(curvature, b))[0]
    error = np.asarray(found, np.float64) - exact
    return candidate, again, float(np.linalg.norm(error) / np.linalg.norm(exact))


def _low_rank(some: dict[str, Method]) -> dict[str, Method]:
    return {
        DENSE: some[DENSE],
        "ok.Woodbury (M-FAC's static algorithm)": _ours(ok.Woodbury()),
        **{name: method for name, method in some.items() if name != DENSE},
    }


def _by_products(some: dict[str, Method]) -> dict[str, Method]:
    preconditioned = Method(_preconditioned, lambda P, b: P.solve(b).value)
    name = f"ok.CG, Nyström preconditioner of rank {RANK}"
    return {**some, name: preconditioned}


def _methods() -> dict[str, Method]:
    methods = {
        DENSE: Method(_dense_factor, _dense_apply),
        f"ok.CG({RTOL:.0e})": _ours(ok.CG(RTOL, max_steps=1000)),
        f"ok.Neumann({NUM_TERMS})": _ours(ok.Neumann(NUM_TERMS)),
        f"ok.Nystrom({RANK})": _ours(ok.Nystrom(RANK, key=jr.key(0))),
        f"lineax.CG({RTOL:.0e})": Method(lambda C: C, _lineax_cg, is_peer=True),
        f"jax.scipy cg({RTOL:.0e})": Method(
            lambda C: C, partial(_flat_cg, jsp.sparse.linalg.cg), is_peer=True
        ),
    }
    linear_solve = peer("jaxopt.linear_solve")
    if linear_solve is not None:

        def solve_cg(matvec: Any, b: Any, tol: float, maxiter: int) -> Any:
            return linear_solve.solve_cg(matvec, b, tol=tol, maxiter=maxiter), None

        name = f"jaxopt.solve_cg({RTOL:.0e})"
        methods[name] = Method(lambda C: C, partial(_flat_cg, solve_cg), is_peer=True)
    return methods


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
    return jsp.linalg.cho_factor(matrix + DAMPING * jnp.eye(len(matrix)))


def _dense_apply(factor: Any, b: Any) -> Any:
    flat, back = ravel_pytree(b)
    return back(jsp.linalg.cho_solve(factor, flat))


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
    """Half in the range of the curvature, half anywhere."""
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
    """A dense solve in float64; the matrix from its own float32 products."""
    matrix = np.asarray(jax.jit(lambda C: C.as_matrix())(curvature), np.float64)
    damped = 0.5 * (matrix + matrix.T) + DAMPING * np.eye(len(matrix))
    return np.linalg.solve(damped, np.asarray(ravel_pytree(b)[0], np.float64))


def _big_memory() -> float:
    """What the compiler plans for large rows, over the rows; nothing is run."""

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
    rounds=10,
    reading=(
        "The methods do not compute the same thing at these settings: the error column "
        "says how far each is from the exact inverse. Woodbury is exact for a Fisher "
        "matrix and costs two passes over its rows for each further vector. A Neumann "
        "series and a sketch are approximations by design; their errors are no "
        "failures. A dense factor wins wherever it fits, for many vectors: it stops "
        "to fit at some ten thousand weights."
    ),
)
