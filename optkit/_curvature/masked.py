"""Curvature restricted to some parameters: P C P, with P a mask."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._types import Params
from .base import (
    AbstractCurvature,
    check_symmetric,
    diagonal_of,
)


class Masked(AbstractCurvature):
    """P C P: the curvature restricted to some entries, zero elsewhere.

    P keeps the entries where the mask is true and zeroes the others. P C P has the
    size of C, and is singular unless all is kept; damping makes it λ outside.

    Args:
        curvature: any symmetric Lineax operator.
        mask: a pytree prefix of the params; its leaves are booleans, one for all
            entries below it, or boolean arrays, one for each entry.

    Raises:
        ValueError: if the mask is not a prefix of the params, or an array in it does
            not have the shape of its leaf.
        TypeError: if it holds anything but booleans.

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
    mask: PyTree  # one boolean scalar or array for each leaf of the params

    def __init__(self, curvature: lx.AbstractLinearOperator, mask: PyTree) -> None:
        check_symmetric("ok.Masked", curvature)
        self.curvature = curvature
        self.mask = _full_mask(mask, curvature.in_structure())

    @property
    def is_psd(self) -> bool:
        """Whether C is."""
        return lx.is_positive_semidefinite(self.curvature)

    def mv(self, vector: Params) -> Params:
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


@lx.linearise.register(Masked)
def _(operator: Masked) -> lx.AbstractLinearOperator:
    linear = lx.linearise(operator.curvature)
    return eqx.tree_at(lambda op: op.curvature, operator, linear)


def _full_mask(mask: PyTree, structure: PyTree) -> PyTree:
    """The mask with one boolean array for each leaf of the params."""

    def one(m: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        if jnp.result_type(m) != jnp.bool_:
            raise TypeError(
                f"`ok.Masked` needs booleans, got {jnp.result_type(m)}. Compare, for "
                f"example `weights != 0`."
            )
        if jnp.shape(m) not in ((), leaf.shape):
            raise ValueError(
                f"`ok.Masked` got a mask of shape {jnp.shape(m)} for a leaf of shape "
                f"{leaf.shape}. Pass one boolean, or one for each entry."
            )
        return jnp.asarray(m)

    try:
        return jax.tree.map(
            lambda m, below: jax.tree.map(lambda leaf: one(m, leaf), below),
            mask,
            structure,
        )
    except ValueError as error:
        if "`ok.Masked`" in str(error):
            raise
        raise ValueError(
            "`ok.Masked` needs a mask that is a pytree prefix of the params.\n"
            f"  mask: {jax.tree.structure(mask)}\n"
            f"  params: {jax.tree.structure(structure)}"
        ) from error
