"""Differentiates the root of any equation."""

from collections.abc import Callable
from typing import Any, ClassVar

import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._inverse.gmres import GMRES
from .._types import Params
from .base import (
    AbstractCondition,
    ImplicitSolve,
    check_like_solution,
    decorator,
    linearised,
)
from .linear import for_general


class Root(AbstractCondition):
    """F(y, args) = 0."""

    function: Callable[..., Any]
    maker: ClassVar[str] = "ok.implicit_root"

    def residual(self, y: Params, args: PyTree) -> Params:
        """F(y, args)."""
        return self.function(y, args)

    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """∂_yF."""
        return linearised(lambda y: self.residual(y, args), y)

    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless F is like y."""
        check_like_solution(self.maker, "optimality", value, y)


def implicit_root(
    optimality: Callable[..., Any],
    *,
    solver: lx.AbstractLinearSolver | None = None,
    has_aux: bool = False,
) -> Callable[[Callable[..., Any]], ImplicitSolve]:
    """Makes the solution of F(y, θ) = 0 differentiable, whatever found it.

        ẏ = -A⁻¹ ∂_θF θ̇    with A = ∂_yF at the solution

    in forward and reverse mode, to any order, under `jit`, `vmap` and `scan`. Reverse
    mode costs one solve with Aᵀ, whatever the number of parameters, and no memory for
    the steps of the solver.

    The derivative is that of the exact root: to the error |ŷ - y| of an inexact one
    it is wrong by as much, times a constant. `ok.check_implicit` measures it.

    Args:
        optimality: F(y, args) -> a pytree like y. It must be a pure function of y,
            args and what it closes over, which may be traced and is differentiated.
        solver: the method for A: `ok.GMRES()` if None, any solver of Lineax's such as
            `lx.LU()` for small y, `ok.OneStep()`, or `ok.Neumann(K, step_size=α)`.
            Not the symmetric methods: for a gradient, `ok.implicit_minimum`.
        has_aux: whether the solver returns (y, aux). Derivatives of aux are zero.

    Returns:
        A decorator for solve(y0, args) -> y. The solver may be an optax loop, another
        library's, or NumPy code; for the last under `jax.jit` see `ok.host_solver`.
        y0 is a guess, and gets a zero derivative: to learn a starting point, unroll
        with `ok.unroll`, or put a pull towards it into the optimality.

    Raises:
        TypeError: for something that is not a function, or not a method.
        ValueError: for a method of ours for symmetric operators only; one of Lineax's
            raises at the first derivative.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> @ok.implicit_root(lambda y, a: y**3 - a)
        ... def cube_root(y0, a):
        ...     return jnp.cbrt(a)
        >>> print(f"{jax.grad(cube_root, argnums=1)(1.0, 8.0):.4f}")  # 1 / (3 * 2**2)
        0.0833

    Reference:
        Blondel et al. 2022, arXiv:2105.15183, section 2.
    """
    check = Check("ok.implicit_root")
    check.function(optimality=optimality)
    given = GMRES() if solver is None else solver
    method = for_general(check, given, None)
    return decorator(check, Root(optimality), method, has_aux)
