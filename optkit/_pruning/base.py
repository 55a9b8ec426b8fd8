"""The cost of removing a weight, and what the pruning functions share."""

import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, PyTree

from .._check import Check
from .._curvature.base import diagonal_of
from .._types import Params
from .._vector import common_dtype, over_peak, zeros_like


def obs_saliency(params: Params, inverse: lx.AbstractLinearOperator) -> Params:
    """Returns what removing each weight alone would cost.

    With P the inverse of the curvature of the mean loss,

        s_i = (w_i / √(2 P_ii))²

    is the second-order increase of the loss if weight i is set to zero and all others
    take their best step. It is in units of the loss, and in float32 or wider. It is NaN
    where P_ii < 0, in which case P is not positive definite.

    Args:
        params: the weights w of a trained model.
        inverse: P, with a known diagonal: `ok.invert(..., ok.Woodbury(), damping=...)`.
            Other methods, such as `ok.CG()`, raise a `NotImplementedError`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[3.0, 0.0], [0.0, 0.5]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=0.01)
        >>> ok.obs_saliency(jnp.array([1.0, 1.0]), P).round(2)
        Array([4.5 , 0.13], dtype=float32)

    Reference:
        Hassibi and Stork 1992; Frantar et al. 2021, arXiv:2107.03356 (M-FAC).
    """
    check_inverse(Check("ok.obs_saliency"), params, inverse)

    def saliency(w: Array, p: Array) -> Array:
        return (jnp.asarray(w, p.dtype) / jnp.sqrt(2 * p)) ** 2

    return jax.tree.map(saliency, params, diagonal_of(inverse))


def ranks(params: Params, diagonal: Params) -> Params:
    """Returns |w_i| / √P_ii, times a power of two: the order of the saliencies.

    The saliency itself leaves the range of float32 for weights of 1e20 or 1e-25.
    """
    dtype = common_dtype((params, diagonal))
    w, p = (optax.tree.cast(x, dtype) for x in (params, diagonal))
    w, _ = over_peak(w)
    root, _ = over_peak(jax.tree.map(jnp.sqrt, p))
    return jax.tree.map(lambda w, r: jnp.abs(w) / r, w, root)


def check_inverse(
    check: Check, params: Params, inverse: lx.AbstractLinearOperator
) -> None:
    """Raises unless the inverse is a symmetric operator on the params."""
    check.symmetric(inverse, "inverse")
    check.like("params", params, inverse.in_structure(), "the inverse's params")


def only(mask: PyTree, tree: Params) -> Params:
    """The entries where the mask is true, zero elsewhere."""
    return jax.tree.map(jnp.where, mask, tree, zeros_like(tree))
