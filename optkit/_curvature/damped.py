"""Curvature plus a multiple of the identity: C + λI."""

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
    """C + λI, with an absolute λ added to the curvature of the MEAN loss.

    Args:
        curvature: any symmetric Lineax operator on real params.
        damping: λ >= 0, a finite scalar. If it is traced, its sign is not checked.
            Derivatives flow through it.

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
        check.symmetric(curvature, "curvature")
        check.non_negative(damping=damping)
        self.curvature = curvature
        self.damping = as_scalar(check, "damping", damping)

    @property
    def is_psd(self) -> bool:
        """Whether C is positive semidefinite."""
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


def split_damping(operator: Any) -> tuple[Any, Float[Array, ""]]:
    """Returns C and λ of C + λI, with λ = 0 for an operator without damping."""
    damping = jnp.zeros((), jnp.result_type(float))
    while isinstance(operator, Damped):
        damping = damping + operator.damping.astype(damping.dtype)
        operator = operator.curvature
    return operator, damping
