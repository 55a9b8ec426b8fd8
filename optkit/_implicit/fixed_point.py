"""Differentiates a fixed point."""

from collections.abc import Callable
from typing import Any, ClassVar

import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._inverse.gmres import GMRES
from .._types import Params
from .._vector import subtract
from .base import (
    AbstractCondition,
    ImplicitSolve,
    check_like_solution,
    decorator,
    linearised,
)
from .linear import for_general


class FixedPoint(AbstractCondition):
    """T(y, args) = y."""

    function: Callable[..., Any]
    maker: ClassVar[str] = "ok.implicit_fixed_point"

    def residual(self, y: Params, args: PyTree) -> Params:
        """The difference y - T(y, args)."""
        return subtract(y, self.function(y, args))

    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """I - ∂_yT."""
        return linearised(lambda y: self.residual(y, args), y)

    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless T returns a pytree like y."""
        check_like_solution(self.maker, "mapping", value, y)


def implicit_fixed_point(
    mapping: Callable[..., Any],
    *,
    solver: lx.AbstractLinearSolver | None = None,
    has_aux: bool = False,
) -> Callable[[Callable[..., Any]], ImplicitSolve]:
    """Makes the solution of T(y, θ) = y differentiable, whatever found it.

        ẏ = A⁻¹ ∂_θT θ̇    with A = I - ∂_yT at the solution

    Of maps with the same fixed points and different step sizes, all give the same
    derivative; the best conditioned A takes the fewest steps. T need not contract.

    Args:
        mapping: T(y, args) -> a pytree like y. It must be a pure function of y, args
            and what it closes over, which may be traced and is differentiated.
        solver: the method for A. `ok.GMRES()` if None. `ok.Neumann(K)` sums
            Σ_{j<K} (∂T)ʲ, which is what backpropagation through the last K steps from
            the solution gives: for a T that contracts by ρ it is off by ρᴷ, relative to
            the exact solution of the linear system. `ok.OneStep()` is its first term.
        has_aux: whether the solver returns (y, aux). Derivatives of aux are zero.

    Returns:
        A decorator for solve(y0, args) -> y, as of `ok.implicit_root`.

    Raises:
        TypeError: for something that is not a function, or not a method.
        ValueError: for a method of ours for symmetric operators only; one of Lineax's
            raises at the first derivative.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> @ok.implicit_fixed_point(lambda y, a: 0.5 * (y + a / y))
        ... def square_root(y0, a):
        ...     return jnp.sqrt(a)
        >>> print(jax.grad(square_root, argnums=1)(1.0, 4.0))
        0.25

    Reference:
        Blondel et al. 2022, arXiv:2105.15183, section 2.1.
    """
    check = Check("ok.implicit_fixed_point")
    check.function(mapping=mapping)
    given = GMRES() if solver is None else solver
    method = for_general(check, given, 1.0)
    return decorator(check, FixedPoint(mapping), method, has_aux)
