"""A multiple of the identity in place of an inverse."""

from typing import Any, ClassVar

from jaxtyping import PyTree

from .._check import Check
from .._results import RESULTS
from .._types import Params
from .._vector import scale
from .base import AbstractInverse, Operator, Solved


class OneStep(AbstractInverse):
    """Approximates A⁻¹ by αI, at no cost.

        x = α b

    For a fixed point of T, A = I - ∂T. With α = 1 this is the derivative of one step of
    T from the solution: one-step differentiation, or Jacobian-free backpropagation. If
    T contracts by ρ, it is off by (I - A⁻¹) b, at most ρ/(1 - ρ) |b|.

    For a minimum, A is the Hessian. This is one step of gradient descent with step size
    α, and for α = 1 the T1-T2 hypergradient. It is off by (A⁻¹ - αI) b, mostly in
    directions of small curvature. If α < 1/λ_max, x has a positive inner product with
    the exact A⁻¹b.

    Args:
        step_size: α > 0.

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
    needs_symmetric: ClassVar[bool] = False

    def __init__(self, step_size: Any = 1.0) -> None:
        Check("ok.OneStep").positive(step_size=step_size)
        self.step_size = step_size

    def factorise(self, operator: Operator) -> PyTree:
        """Nothing to do."""
        del operator
        return ()

    def apply(self, operator: Operator, factor: PyTree, vector: Params) -> Solved:
        """α b."""
        del operator, factor
        return scale(self.step_size, vector), RESULTS.successful, {}
