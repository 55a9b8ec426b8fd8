"""The linear solve behind a derivative: any method, at any scale, never silent."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, Bool, PyTree

from .._check import (
    check_positive,
    check_positive_int,
)
from .._inverse.base import AbstractInverse
from .._inverse.gmres import GMRES
from .._inverse.neumann import Neumann
from .._results import (
    RESULTS,
    first_failure,
)
from .._types import Params
from .._vector import (
    all_finite,
    axpy,
    cast_like,
    dot,
    normalised,
    widen,
)

_ITERATIVE = (lx.CG, lx.BiCGStab, lx.GMRES, lx.LSMR)
_FACTORISING = (lx.LU, lx.QR, lx.SVD, lx.Cholesky)


class OneStep(lx.AbstractLinearSolver):
    """Takes the inverse of A for a multiple of the identity, at no cost.

        x = α b

    For a fixed point, A = I - ∂T and α = 1: the derivative of one step of T from the
    solution, as one-step differentiation and Jacobian-free backpropagation have it.
    It is off by (I - A⁻¹) b, at most ρ/(1 - ρ) |b|, for a T that contracts
    by ρ. For a minimum, A is the Hessian: the T1-T2 hypergradient for
    α = 1, and one step of gradient descent of step size α. With α below 1/λ_max it
    has a positive inner product with the exact A⁻¹b, of which it is off by
    (A⁻¹ - αI) b: most of it in directions of small curvature.

    Args:
        step_size: α > 0.

    Raises:
        ValueError: for step_size <= 0.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> def mapping(y, theta):
        ...     return 0.1 * y + theta
        >>> @ok.implicit_fixed_point(mapping, solver=ok.OneStep())
        ... def solve(y0, theta):
        ...     return theta / 0.9
        >>> print(jax.grad(lambda t: solve(0.0, t))(1.0))  # exactly, 1 / 0.9
        1.0

    Reference:
        Luketina et al. 2016 (T1-T2); Fung et al. 2022, arXiv:2103.12803;
        Bolte, Pauwels and Vaiter 2023, arXiv:2305.13768.
    """

    step_size: Any

    def __init__(self, step_size: Any = 1.0) -> None:
        check_positive("ok.OneStep", "step_size", step_size)
        self.step_size = step_size

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> Any:
        """Nothing to factorise."""
        del operator, options
        return ()

    def compute(
        self, state: Any, vector: Params, options: dict[str, Any]
    ) -> tuple[Params, Any, dict[str, Any]]:
        """α b."""
        del state, options
        alpha = jnp.asarray(self.step_size, jnp.result_type(float))
        zeros = jax.tree.map(jnp.zeros_like, widen(vector))
        x = cast_like(axpy(alpha, vector, zeros), vector)
        return x, lx.RESULTS.successful, {"outcome": RESULTS.successful}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself: αI is symmetric."""
        return state, options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True."""
        return True


class Series(lx.AbstractLinearSolver):
    """`ok.Neumann` for operators that are not symmetric.

        x = α Σ_{j=0..K-1} (I - αA)ʲ b

    K - 1 products. Terms may grow for a while where A is not normal, so that the
    series diverges is reported when the last term has grown and exceeds the first.
    """

    num_terms: int
    step_size: Any

    def __init__(self, num_terms: int, step_size: Any) -> None:
        check_positive_int("ok.Neumann", "num_terms", num_terms)
        self.num_terms, self.step_size = num_terms, step_size

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> lx.AbstractLinearOperator:
        """Nothing to factorise."""
        del options
        return operator

    def compute(
        self,
        state: lx.AbstractLinearOperator,
        vector: Params,
        options: dict[str, Any],
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Adds the terms one by one."""
        del options
        product = lx.linearise(state).mv
        b, scale = normalised(vector)
        alpha = jnp.asarray(self.step_size, scale.dtype)

        def next_term(_: Any, carry: Any) -> Any:
            total, term, norm, _ = carry
            term = axpy(-alpha, product(cast_like(term, vector)), term)
            total = jax.tree.map(jnp.add, total, term)
            return total, term, jnp.sqrt(dot(term, term)), norm

        start = jnp.sqrt(dot(b, b))
        total, _, norm, before = lax.fori_loop(
            0, self.num_terms - 1, next_term, (b, b, start, start)
        )
        is_growing = (norm > before) & (norm > start) | ~jnp.isfinite(norm)
        outcome = first_failure(
            (~jnp.isfinite(scale), RESULTS.nonfinite_input),
            (is_growing, RESULTS.diverging),
        )
        x = jax.tree.map(lambda a: a * (alpha * scale).astype(a.dtype), total)
        stats = {"num_steps": jnp.asarray(self.num_terms), "outcome": outcome}
        return cast_like(x, vector), lx.RESULTS.successful, stats

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The transposed operator."""
        return state.transpose(), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The operator itself, as it is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True."""
        return True


def for_general(call: str, solver: Any, step_size: float | None) -> Any:
    """The method for an A that is not symmetric that a user means by `solver`.

    Args:
        call: the decorator to name in messages.
        solver: what the user gave.
        step_size: α of a Neumann series that has none; None where there is no default.

    Returns:
        A Lineax solver.

    Raises:
        ValueError: for a method for symmetric operators only.
    """
    if isinstance(solver, Neumann):
        alpha = step_size if solver.step_size is None else solver.step_size
        if alpha is None:
            raise ValueError(
                f"`{call}` needs a step size for the Neumann series of a Jacobian "
                f"that is not symmetric: `ok.Neumann({solver.num_terms}, "
                f"step_size=...)`."
            )
        return Series(solver.num_terms, alpha)
    if isinstance(solver, AbstractInverse):
        raise ValueError(
            f"`{call}` needs a method for Jacobians that are not symmetric, got "
            f"`ok.{type(solver).__name__}`. If this one is the Hessian of an "
            f"objective, pass that to `ok.implicit_minimum`; else use `ok.GMRES()`, "
            f"`lx.LU()` or `lx.Normal({type(solver).__name__}(...))`."
        )
    return solver


def solve_loudly(
    operator: lx.AbstractLinearOperator,
    vector: Params,
    solver: lx.AbstractLinearSolver,
    *,
    is_valid: Bool[Array, ""],
    nought: Array | None,
) -> Params:
    """A⁻¹b by any method, differentiable to any order and in both modes.

    A derivative has nowhere to return a status, so what failed raises the text of its
    `ok.RESULTS`, in the transposed solve too.

    Args:
        operator: A. Derivatives flow through what its product closes over.
        vector: b.
        solver: the method.
        is_valid: whether the solution to differentiate is finite.
        nought: zero, and a function of all that may be perturbed. JAX transposes a
            solve only if every leaf of its right-hand side is linear, and in
            derivatives of A, where some leaves of F are, others need not be. None
            where there is a single leaf.

    Returns:
        x, a pytree like b.

    Raises:
        TypeError: for a factorisation in less than float32.
    """
    bits = [jnp.finfo(leaf).bits for leaf in jax.tree.leaves(vector)]
    if isinstance(solver, _FACTORISING) and max(bits) < 32:
        raise TypeError(
            f"`lx.{type(solver).__name__}` factorises no dtype narrower than float32, "
            f"and y is. Return it in float32, or take `ok.GMRES()`, or `ok.CG()`."
        )

    def method(operator: lx.AbstractLinearOperator) -> Any:
        def solve(_: Any, b: Params) -> Params:
            state = solver.init(operator, {})
            x, outcome, _ = attempt(solver, (operator, state), b)
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
        return q if nought is None else axpy(nought, v, q)

    is_symmetric = lx.is_symmetric(operator)
    return lax.custom_linear_solve(
        product,
        vector,
        method(operator),
        None if is_symmetric else method(operator.transpose()),
        symmetric=is_symmetric,
    )


def attempt(
    solver: lx.AbstractLinearSolver,
    state: tuple[lx.AbstractLinearOperator, PyTree],
    vector: Params,
) -> tuple[Params, Any, dict[str, Any]]:
    """Solves A x = b at any scale of b, and looks at how it went.

    Methods that report their own outcome are believed. For any other b is scaled to
    norm one, so that an absolute tolerance is relative, and the true residual
    |b - A x| / |b| is compared with what was asked of the method.

    Returns:
        x; an item of `ok.RESULTS`; and statistics, at least `residual` or an outcome.
    """
    operator, inner = state
    if isinstance(solver, AbstractInverse):
        return solver.apply(operator, inner[1], vector)
    if isinstance(solver, GMRES | OneStep | Series):
        x, _, stats = solver.compute(inner, vector, {})
        return x, stats["outcome"], stats
    b, scale = normalised(vector)
    x, result, stats = solver.compute(inner, cast_like(b, vector), {})
    r = jax.tree.map(jnp.subtract, b, widen(operator.mv(x)))
    residual = jnp.sqrt(dot(r, r))
    outcome = first_failure(
        (~jnp.isfinite(scale), RESULTS.nonfinite_input),
        (~all_finite(x), RESULTS.singular_jacobian),
        (result != lx.RESULTS.successful, RESULTS.promote(result)),
        (~(residual <= _allowed(solver, vector)), RESULTS.inexact_backward),
    )
    x = jax.tree.map(lambda a: a * scale.astype(a.dtype), widen(x))
    return cast_like(x, vector), outcome, {**stats, "residual": residual}


def _allowed(solver: lx.AbstractLinearSolver, vector: Params) -> float:
    """The residual that a method of Lineax's may leave of a b of norm one."""
    leaves = jax.tree.leaves(vector)
    eps = max([float(jnp.finfo(leaf).eps) for leaf in leaves])
    size = sum(leaf.size for leaf in leaves)
    asked = 0.0
    if isinstance(solver, _ITERATIVE):
        # Its tolerances are for the largest entry.
        asked = 10 * (float(solver.rtol) + float(solver.atol) * size**0.5)
    return max(asked, eps**0.5)
