"""The linear solve of a derivative, by any method and at any scale."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._inverse.adapter import as_method
from .._inverse.base import AbstractInverse
from .._inverse.neumann import Neumann
from .._inverse.small import LUOrGMRES
from .._results import RESULTS, first_failure, raise_failure
from .._types import Params
from .._vector import all_finite, axpy

_FACTORISING = (lx.LU, lx.QR, lx.SVD, lx.Cholesky)
_NOT_SYMMETRIC = (
    "needs a method for Jacobians that are not symmetric, got `ok.{name}`. If the "
    "equation is the gradient of an objective, pass that to `ok.implicit_minimum`; "
    "otherwise use `ok.GMRES()`, `lx.LU()` or `lx.Normal(ok.{name}(...))`."
)


def method_for_general(check: Check, solver: Any, step_size: float | None) -> Any:
    """The user's method for a general A, with a step size for a Neumann series."""
    solver = LUOrGMRES() if solver is None else solver
    check.method(solver=solver)
    if isinstance(solver, Neumann) and solver.step_size is None:
        text = f"needs a step size: `ok.Neumann({solver.num_terms}, step_size=...)`."
        check.that(step_size is not None, text)
        return Neumann(solver.num_terms, step_size)
    is_general = not (isinstance(solver, AbstractInverse) and solver.needs_symmetric)
    check.that(is_general, _NOT_SYMMETRIC.format(name=type(solver).__name__))
    return solver


# JAX transposes a solve only if every leaf of its right-hand side is linear in what is
# perturbed. If there are several leaves, some of F may not depend on it. Adding this
# zero makes all of them depend on it.
def zero_tangent(tree: PyTree, y: Params) -> Array | None:
    """Zero, as a function of every floating array; None if y has a single leaf."""
    if len(jax.tree.leaves(y)) == 1:
        return None
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    terms = [jnp.where(jnp.isfinite(x), x, 0) for x in leaves]
    terms = [jnp.real(0 * jnp.sum(x)).astype(jnp.float32) for x in terms]
    return sum(terms, jnp.zeros((), jnp.float32))


def solve_or_raise(
    operator: lx.AbstractLinearOperator,
    vector: Params,
    solver: lx.AbstractLinearSolver,
    y: Params,
    inputs: PyTree,
) -> Params:
    """Returns A⁻¹b by any method, differentiable to any order and in both modes.

    A derivative cannot return a status, so a failure raises the text of its
    `ok.RESULTS`, in the transposed solve too. Derivatives flow through b and A, which
    depends on the solution y and on `inputs`.
    """
    widest = max(jax.tree.leaves(vector), key=lambda leaf: jnp.finfo(leaf).bits).dtype
    is_fine = not isinstance(solver, _FACTORISING) or jnp.finfo(widest).bits >= 32
    text = f"needs y in float32 or wider, got {widest}. Cast it, or use `ok.GMRES()`."
    Check(f"lx.{type(solver).__name__}").that(is_fine, text, TypeError)
    is_valid = lax.stop_gradient(all_finite(y))
    zero = zero_tangent((y, inputs), y)

    def solve_with(A: lx.AbstractLinearOperator) -> Any:
        def solve(_: Any, b: Params) -> Params:
            method = as_method(solver)
            x, outcome, _ = method.apply(*method.init(A, {}), b)
            outcome = first_failure(
                (~is_valid, RESULTS.nonfinite_solution),
                (outcome != RESULTS.successful, outcome),
            )
            # The check is on a scalar, because a conditional on x compiles slowly.
            one = raise_failure(outcome, jnp.ones((), jnp.float32))
            return jax.tree.map(lambda a: jnp.where(one == 1, a, jnp.nan), x)

        return solve

    def product(v: Params) -> Params:
        q = operator.mv(v)
        return q if zero is None else axpy(zero, v, q)

    is_symmetric = lx.is_symmetric(operator)
    return lax.custom_linear_solve(
        product,
        vector,
        solve_with(operator),
        None if is_symmetric else solve_with(operator.transpose()),
        symmetric=is_symmetric,
    )
