"""How the other weights move when some are removed."""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._check import Check
from .._curvature.base import diagonal_of
from .._curvature.masked import Masked
from .._inverse.cg import CG
from .._inverse.inverse import invert
from .._types import Params
from .._vector import cast_like, narrowest_eps, over_peak, scale, subtract
from .base import check_inverse, only


def obs_summed(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """Returns params without S by the sum of the single-weight updates, as in M-FAC.

        w <- w - P Σ_{i in S} e_i w_i / P_ii,   then w_S = 0

    `removed` is S, a pytree of booleans like the params w. `inverse` is P, with a known
    diagonal. It takes one product with P and ignores interactions within S, so remove
    few weights at a time, as `ok.obs_prune_gradually` does.

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, and the authors' code.
    """
    check = Check("ok.obs_summed")
    check_inverse(check, params, inverse)
    removed = check.booleans("removed", removed, params, "the params")

    def ratio(w: Array, p: Array) -> Array:
        return jnp.asarray(w, p.dtype) / p

    x = only(removed, jax.tree.map(ratio, params, diagonal_of(inverse)))
    # x has the size of w / P and P x that of w. Divided by their geometric mean, both
    # fit float16 where P alone does not.
    peaks = [over_peak(v)[1] for v in (x, only(removed, params))]
    _, size = over_peak(jnp.sqrt(peaks[0]) * jnp.sqrt(peaks[1]))
    step = inverse.mv(cast_like(scale(1 / size, x), params))
    return _stepped(params, scale(size, step), removed)


def obs_joint(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """Returns params without S by the best update that zeroes all of S together.

        w <- w - P E (Eᵀ P E)⁻¹ Eᵀ w,   E the columns of the identity in S,

    minimises the second-order loss over all w with w_S = 0. The arguments are those of
    `ok.obs_summed`, but the diagonal of P need not be known. Conjugate gradients solve
    the inner system, which takes at most |S| products with P in exact arithmetic. Use
    it for small sets.

    Reference:
        Singh and Alistarh 2020, arXiv:2004.14340, appendix on joint removal.
    """
    check = Check("ok.obs_joint")
    check_inverse(check, params, inverse)
    removed = check.booleans("removed", removed, params, "the params")
    inner = invert(Masked(inverse, removed), CG(rtol=1e3 * narrowest_eps(params)))
    multipliers = inner.mv(only(removed, params))
    return _stepped(params, inverse.mv(only(removed, multipliers)), removed)


def _stepped(params: Params, step: Params, removed: PyTree) -> Params:
    """w - step, with zeros in S."""
    return only(jax.tree.map(jnp.logical_not, removed), subtract(params, step))
