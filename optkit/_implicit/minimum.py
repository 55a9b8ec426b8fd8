"""Differentiates a minimum, by products with its Hessian."""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._curvature.damped import Damped
from .._inverse.cg import CG
from .._types import Params
from .._vector import structure_of
from .base import AbstractCondition, ImplicitSolve, decorator
from .call import P, R


class Minimum(AbstractCondition):
    """∇_y g(y, args) = 0, where g is minimal."""

    function: Callable[..., Any]
    damping: Any
    call: ClassVar[str] = "ok.implicit_minimum"

    def residual(self, y: Params, args: PyTree) -> Params:
        """∇_y g."""
        return jax.grad(self.function)(y, args)

    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """∇²_yy g + λI. At a minimum it has no negative eigenvalue."""
        tags = frozenset({lx.symmetric_tag, lx.positive_semidefinite_tag})
        # H is its own transpose. For networks, products by reverse mode cost the same
        # and mostly use less memory; for softmax regression they cost a tenth less.
        _, transposed = jax.vjp(lambda y: self.residual(y, args), y)
        hessian = lx.FunctionLinearOperator(
            lambda v: transposed(v)[0], structure_of(y), tags, closure_convert=False
        )
        return hessian if self.damping is None else Damped(hessian, self.damping)

    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless g is a scalar."""
        del y
        Check(self.call).scalar(lambda: value, "objective")()


def implicit_minimum(
    objective: Callable[..., Any],
    *,
    solver: lx.AbstractLinearSolver | None = None,
    damping: Any = 0.0,
    has_aux: bool = False,
) -> Callable[[Callable[P, R]], ImplicitSolve[P, R]]:
    """Makes the minimiser of g(·, θ) differentiable, however it is found.

        ẏ = -(H + λI)⁻¹ ∂_θ∇_y g θ̇    with H = ∇²_yy g at the solution

    This is `ok.implicit_root` of ∇_y g, but it exploits the symmetry of H: it can use
    conjugate gradients, whose error grows with the condition number of H rather than
    with its square.

    Args:
        objective: g(y, args) -> a scalar, a pure function as in `ok.implicit_root`. Its
            gradient is differentiated in reverse mode; if it supports only forward
            mode, use `ok.implicit_root(jax.grad(objective))`.
        solver: the method for H + λI; default `ok.CG()`. All methods of optkit and
            Lineax work, such as `lx.Cholesky()` or `ok.Neumann(K)`, which equals K
            steps of gradient descent from the solution. `ok.OneStep()` replaces H by I.
        damping: λ >= 0, absolute, for an H that is singular or nearly so. The
            derivative is then that of a problem with an added pull of strength λ
            towards its solution.
        has_aux: whether the solver returns (y, aux). Derivatives of aux are zero.

    Returns:
        A decorator for solve(y0, args) -> y, as for `ok.implicit_root`.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> def ridge(w, theta):
        ...     return jnp.sum((w - 3.0) ** 2) + theta * jnp.sum(w**2)
        >>> @ok.implicit_minimum(ridge)
        ... def fit(w0, theta):
        ...     return jnp.full(2, 3.0) / (1 + theta)
        >>> print(jax.jacobian(fit, argnums=1)(jnp.zeros(2), 1.0))
        [-0.75 -0.75]

    Reference:
        Blondel et al. 2022, arXiv:2105.15183, section 2.2.
    """
    check = Check("ok.implicit_minimum")
    check.function(objective=objective)
    check.non_negative(damping=damping)
    is_zero = isinstance(damping, int | float) and damping == 0
    condition = Minimum(objective, None if is_zero else damping)
    return decorator(check, condition, CG() if solver is None else solver, has_aux)
