"""Differentiates a fixed point."""

from collections.abc import Callable
from typing import Any, ClassVar

import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .._vector import subtract
from .base import AbstractEquation, ImplicitSolve, decorator
from .call import P, R
from .linear import method_for_general


class FixedPoint(AbstractEquation):
    """T(y, args) = y."""

    function: Callable[..., Any]
    call: ClassVar[str] = "ok.implicit_fixed_point"
    name: ClassVar[str] = "mapping"

    def residual(self, y: Params, args: PyTree) -> Params:
        """The difference y - T(y, args)."""
        return subtract(y, self.function(y, args))


def implicit_fixed_point(
    mapping: Callable[..., Any],
    *,
    solver: lx.AbstractLinearSolver | None = None,
    has_aux: bool = False,
) -> Callable[[Callable[P, R]], ImplicitSolve[P, R]]:
    """Makes the solution of T(y, θ) = y differentiable, however it is found.

        ẏ = A⁻¹ ∂_θT θ̇    with A = I - ∂_yT at the solution

    T need not be a contraction. The derivative does not depend on the step size of the
    mapping, but the linear solve takes the fewest steps if A is well conditioned.

    Args:
        mapping: T(y, args) -> a pytree like y, a pure function as in
            `ok.implicit_root`.
        solver: the method for A; default as for `ok.implicit_root`. `ok.Neumann(K)`
            sums Σ_{j<K} (∂T)ʲ, as backpropagation through the last K steps at the
            solution does. If T contracts by ρ, its error relative to the exact solution
            of the linear system is ρᴷ. `ok.OneStep()` is its first term.
        has_aux: whether the solver returns (y, aux). Derivatives of aux are zero.

    Returns:
        A decorator for solve(y0, args) -> y, as for `ok.implicit_root`.

    Raises:
        ValueError: if the method is one of optkit's for symmetric operators. Lineax's
            raise at the first derivative.

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
    method = method_for_general(check, solver, 1.0)
    return decorator(check, FixedPoint(mapping), method, has_aux)
