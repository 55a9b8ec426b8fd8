"""A multiple of the identity in the place of an inverse."""

from typing import Any, ClassVar

import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._results import RESULTS
from .._types import Params
from .._vector import scale
from .base import AbstractInverse, Solved


class OneStep(AbstractInverse):
    """Approximates A⁻¹ by αI, at no cost.

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
    needs_symmetric: ClassVar[bool] = False

    def __init__(self, step_size: Any = 1.0) -> None:
        Check("ok.OneStep").positive(step_size=step_size)
        self.step_size = step_size

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree:
        """Nothing."""
        del operator
        return ()

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: PyTree, vector: Params
    ) -> Solved:
        """α b."""
        del operator, factor
        return scale(self.step_size, vector), RESULTS.successful, {}
