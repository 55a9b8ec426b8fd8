"""Curvature restricted to some parameters: P C P with a mask P."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .base import AbstractCurvature, diagonal_of


class Masked(AbstractCurvature):
    """P C P: the curvature of some entries, and zero elsewhere.

    P zeroes the entries where the mask is false. P C P has the size of C, so it is
    singular unless all entries are kept. Damping makes it λI on the others.

    Args:
        curvature: any symmetric Lineax operator.
        mask: a pytree prefix of the params with a boolean for all entries below it, or
            a boolean array with the shape of its leaf.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank({"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([1.0])})
        >>> mask = {"w": jnp.array([True, False]), "b": True}
        >>> ok.Masked(C, mask).as_matrix()
        Array([[1., 3., 0.],
               [3., 9., 0.],
               [0., 0., 0.]], dtype=float32)
    """

    curvature: lx.AbstractLinearOperator
    mask: PyTree  # one boolean scalar or array per leaf of the params
    maker: ClassVar[str] = "ok.Masked"

    def __init__(self, curvature: lx.AbstractLinearOperator, mask: PyTree) -> None:
        check = Check("ok.Masked")
        check.symmetric(curvature, "curvature")
        self.curvature = curvature
        structure = curvature.in_structure()
        spread = check.booleans("mask", mask, structure, "the params")
        self.mask = jax.tree.map(jnp.asarray, spread)

    @property
    def is_psd(self) -> bool:
        """Whether C is positive semidefinite."""
        return lx.is_positive_semidefinite(self.curvature)

    def product(self, vector: Params) -> Params:
        """P C P x."""
        return self._keep(self.curvature.mv(self._keep(vector)))

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.curvature.in_structure()

    def diagonal(self) -> Params:
        """P diag(C)."""
        return self._keep(diagonal_of(self.curvature))

    def _keep(self, x: Params) -> Params:
        """P x."""
        return jax.tree.map(lambda m, a: jnp.where(m, a, 0), self.mask, x)
