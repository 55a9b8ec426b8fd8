"""Vectors for iterative methods: scaled to norm one, in float32 or wider."""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array

from .._tree import common_dtype, dot
from .._types import Params, wide_dtype


def check_matrix_free(call: str, operator: lx.AbstractLinearOperator) -> None:
    """Raises where a method for symmetric operators got one not known to be."""
    if not lx.is_symmetric(operator) and not lx.is_positive_semidefinite(operator):
        raise ValueError(
            f"`{call}` needs a symmetric operator, got `{type(operator).__name__}` "
            f"that is not known to be. If it is, tag it: `lx.TaggedLinearOperator("
            f"operator, lx.symmetric_tag)`, in Optimistix `tags=`. Else use "
            f"`lx.GMRES(...)` or `lx.Normal(lx.CG(...))`."
        )


def normalised(vector: Params) -> tuple[Params, Array]:
    """The vector in float32 or wider over its norm, and the norm; 0 stays 0.

    The largest entry is divided out first, so that no square under- or overflows.

    Returns:
        The scaled vector, and the norm, which is 1 for a vector of zeros.
    """
    b, peak = over_peak(vector)
    norm = jnp.sqrt(dot(b, b))
    norm = jnp.where(norm == 0, 1, norm)
    return jax.tree.map(lambda a: a / norm.astype(a.dtype), b), norm * peak


def over_peak(vector: Params) -> tuple[Params, Array]:
    """The vector in float32 or wider over its largest entry; 0 stays 0.

    Returns:
        The scaled vector, and the modulus of that entry, 1 for a vector of zeros.
    """
    dtype = common_dtype(vector)
    peaks = [jnp.max(jnp.abs(leaf), initial=0) for leaf in jax.tree.leaves(vector)]
    peak = jnp.asarray(0, dtype)
    for p in peaks:
        peak = jnp.maximum(peak, p.astype(dtype))
    peak = jnp.where(peak == 0, 1, peak)
    b = jax.tree.map(lambda a: a / peak.astype(a.dtype), widened(vector))
    return b, peak


def widened(tree: Params) -> Params:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a)), tree)


def cast_like(tree: Params, like: Params) -> Params:
    """The tree in the dtypes of another."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def add(y: Params, a: Array, x: Params) -> Params:
    """Y + a x in the dtypes of y."""
    return jax.tree.map(lambda y, x: y + a.astype(y.dtype) * x.astype(y.dtype), y, x)
