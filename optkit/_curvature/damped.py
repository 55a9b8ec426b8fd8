"""Curvature plus a multiple of the identity."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import Params
from .._vector import axpy
from .base import AbstractCurvature, as_scalar, diagonal_of


class Damped(AbstractCurvature):
    """C + λI: the only place where damping has a meaning.

    λ is absolute, and is added to the curvature of the MEAN loss. It may be traced,
    and derivatives flow through it.

    Args:
        curvature: any symmetric Lineax operator.
        damping: λ, a scalar >= 0. A traced λ is taken to be.

    Raises:
        ValueError: for a negative, infinite or NaN damping, or an operator not
            known to be symmetric.
        TypeError: for an operator on complex numbers.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[3.0, 4.0]]))
        >>> ok.Damped(C, 0.5).as_matrix()
        Array([[ 9.5, 12. ],
               [12. , 16.5]], dtype=float32)
    """

    curvature: lx.AbstractLinearOperator
    damping: Float[Array, ""]
    maker: ClassVar[str] = "ok.Damped"

    def __init__(self, curvature: lx.AbstractLinearOperator, damping: Any) -> None:
        check = Check("ok.Damped")
        check.symmetric(curvature)
        check.non_negative(damping=damping)
        self.curvature = curvature
        self.damping = as_scalar(check, "damping", damping)

    @property
    def is_psd(self) -> bool:
        """Whether C is."""
        return lx.is_positive_semidefinite(self.curvature)

    def product(self, vector: Params) -> Params:
        """Cx + λx."""
        return axpy(self.damping, vector, self.curvature.mv(vector))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.curvature.in_structure()

    def diagonal(self) -> Params:
        """diag(C) + λ."""
        diag = diagonal_of(self.curvature)
        return axpy(self.damping, jax.tree.map(jnp.ones_like, diag), diag)


def split_damping(
    operator: lx.AbstractLinearOperator,
) -> tuple[lx.AbstractLinearOperator, Float[Array, ""]]:
    """C and λ of C + λI; λ is 0 where there is no damping."""
    damping = jnp.zeros((), jnp.result_type(float))
    while isinstance(operator, Damped):
        damping = damping + operator.damping.astype(damping.dtype)
        operator = operator.curvature
    return operator, damping
