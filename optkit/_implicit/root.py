"""Differentiates the root of an equation."""

from collections.abc import Callable
from typing import Any, ClassVar

import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .base import AbstractEquation, ImplicitSolve, decorator
from .call import P, R
from .linear import method_for_general


class Root(AbstractEquation):
    """F(y, args) = 0."""

    function: Callable[..., Any]
    call: ClassVar[str] = "ok.implicit_root"
    name: ClassVar[str] = "optimality"

    def residual(self, y: Params, args: PyTree) -> Params:
        """F(y, args)."""
        return self.function(y, args)


def implicit_root(
    optimality: Callable[..., Any],
    *,
    solver: lx.AbstractLinearSolver | None = None,
    has_aux: bool = False,
) -> Callable[[Callable[P, R]], ImplicitSolve[P, R]]:
    """Makes the solution of F(y, θ) = 0 differentiable, however it is found.

        ẏ = -A⁻¹ ∂_θF θ̇    with A = ∂_yF at the solution

    Derivatives work in forward and reverse mode, to any order, under `jit`, `vmap` and
    `scan`. Reverse mode costs one solve with Aᵀ, however many parameters there are, and
    stores no steps of the solver.

    The derivative is that of the exact root. If the solver returns ŷ instead of y, the
    derivative is off by a constant times |ŷ - y|; `ok.check_implicit` measures it.

    Args:
        optimality: F(y, args) -> a pytree like y. It must be a pure function of y,
            args and what it closes over, which may be traced and is differentiated.
        solver: the method for A; default LU for up to 100 numbers in float32 or wider,
            `ok.GMRES()` for others. Any Lineax solver works, and so do `ok.OneStep()`
            and `ok.Neumann(K, step_size=α)`. Methods that need a symmetric A do not: if
            F is a gradient, use `ok.implicit_minimum`.
        has_aux: whether the solver returns (y, aux). Derivatives of aux are zero.

    Returns:
        A decorator for solve(y0, args) -> y. The solver may be an optax loop, another
        library, or NumPy code (under `jax.jit` see `ok.host_solver`). y0 is where it
        starts, and gets a zero derivative. To learn a starting point, unroll with
        `ok.unroll`, or add a term to F that pulls y towards it.

    Raises:
        ValueError: if the method is one of optkit's for symmetric operators. Lineax's
            raise at the first derivative.

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
    method = method_for_general(check, solver, None)
    return decorator(check, Root(optimality), method, has_aux)
