"""The linear solve behind a derivative: any method, at any scale, never silent."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool

from .._check import Check
from .._inverse.adapter import as_method
from .._inverse.base import AbstractInverse
from .._inverse.neumann import Neumann
from .._results import RESULTS, first_failure
from .._types import Params
from .._vector import axpy

_FACTORISING = (lx.LU, lx.QR, lx.SVD, lx.Cholesky)
_NARROW = (
    "needs float32 or wider, and y is narrower. Return it in float32, or use "
    "`ok.GMRES()` or `ok.CG()`."
)
_NOT_SYMMETRIC = (
    "needs a method for Jacobians that are not symmetric, got `ok.{name}`. If this is "
    "the Hessian of an objective, pass that to `ok.implicit_minimum`; else use "
    "`ok.GMRES()`, `lx.LU()` or `lx.Normal(ok.{name}(...))`."
)


def for_general(check: Check, solver: Any, step_size: float | None) -> Any:
    """The method for an A that is not symmetric that a user means by `solver`.

    Args:
        check: of the decorator.
        solver: what the user gave.
        step_size: α of a Neumann series that has none; None where there is no default.

    Returns:
        The method.
    """
    check.method(solver=solver)
    if isinstance(solver, Neumann) and solver.step_size is None:
        text = f"needs a step size: `ok.Neumann({solver.num_terms}, step_size=...)`."
        check.that(step_size is not None, text)
        return Neumann(solver.num_terms, step_size)
    name = type(solver).__name__
    is_general = not (isinstance(solver, AbstractInverse) and solver.needs_symmetric)
    check.that(is_general, _NOT_SYMMETRIC.format(name=name))
    return solver


def solve_or_raise(
    operator: lx.AbstractLinearOperator,
    vector: Params,
    solver: lx.AbstractLinearSolver,
    *,
    is_valid: Bool[Array, ""],
    zero_tangent: Array | None,
) -> Params:
    """A⁻¹b by any method, differentiable to any order and in both modes.

    A derivative has nowhere to return a status, so what failed raises the text of its
    `ok.RESULTS`, in the transposed solve too.

    Args:
        operator: A. Derivatives flow through what its product closes over.
        vector: b.
        solver: the method.
        is_valid: whether the solution to differentiate is finite.
        zero_tangent: zero, as a function of all that may be perturbed. JAX transposes
            a solve only if every leaf of its right-hand side is linear. In derivatives
            of A, where some leaves of F are, others need not be. None where there is a
            single leaf.

    Returns:
        x, a pytree like b.

    Raises:
        TypeError: for a factorisation in less than float32.
    """
    name = type(solver).__name__
    bits = [jnp.finfo(leaf).bits for leaf in jax.tree.leaves(vector)]
    is_fine = not isinstance(solver, _FACTORISING) or max(bits) >= 32
    Check(f"lx.{name}").that(is_fine, _NARROW, TypeError)

    def method(operator: lx.AbstractLinearOperator) -> Any:
        def solve(_: Any, b: Params) -> Params:
            ours = as_method(solver)
            x, outcome, _ = ours.apply(*ours.init(operator, {}), b)
            outcome = first_failure(
                (~is_valid, RESULTS.nonfinite_solution),
                (outcome != RESULTS.successful, outcome),
            )
            # Through a scalar: a conditional on x itself is slow to compile.
            one = jnp.ones((), jnp.float32)  # `EQX_ON_ERROR=nan` makes it a NaN
            one = outcome.error_if(one, outcome != RESULTS.successful)
            return jax.tree.map(lambda a: jnp.where(one == 1, a, jnp.nan), x)

        return solve

    def product(v: Params) -> Params:
        q = operator.mv(v)
        return q if zero_tangent is None else axpy(zero_tangent, v, q)

    is_symmetric = lx.is_symmetric(operator)
    return lax.custom_linear_solve(
        product,
        vector,
        method(operator),
        None if is_symmetric else method(operator.transpose()),
        symmetric=is_symmetric,
    )
