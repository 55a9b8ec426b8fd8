"""How the other weights move when some are removed."""

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from .._check import Check
from .._curvature.base import diagonal_of
from .._curvature.masked import Masked
from .._inverse.cg import CG
from .._inverse.inverse import invert
from .._types import Params
from .base import check_inverse, only


def obs_summed(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """The sum of the single-weight updates, M-FAC's rule for many weights at once.

        w <- w - P Σ_{i in S} e_i w_i / P_ii,   then w_S = 0

    One product with P. Interactions within S are ignored, so remove few at a time:
    `ok.obs_prune_gradually`.

    Args:
        params: the weights w.
        inverse: P, with a known diagonal.
        removed: S, a pytree of boolean arrays like the params.

    Returns:
        The new params, zero in S.

    Raises:
        ValueError: for an inverse or a `removed` unlike the params.
        TypeError: for a `removed` that is not boolean.
        NotImplementedError: for a P whose diagonal is not known, as of `ok.CG()`.

    Reference:
        Frantar et al. 2021, arXiv:2107.03356, and the authors' code.
    """
    check = Check("ok.obs_summed")
    check_inverse(check, params, inverse)
    removed = check.booleans("removed", removed, params, "the params")
    ratio = jax.tree.map(jnp.divide, params, diagonal_of(inverse))
    return _removed(params, inverse.mv(only(removed, ratio)), removed)


def obs_joint(
    params: Params, inverse: lx.AbstractLinearOperator, removed: PyTree
) -> Params:
    """The best update that zeroes all of S together.

        w <- w - P E (Eᵀ P E)⁻¹ Eᵀ w,   E the columns of the identity in S,

    minimises the second-order loss over all w with w_S = 0. The inner system is
    solved by conjugate gradients, |S| products with P at most in exact arithmetic:
    for small sets.

    Args:
        params: the weights w.
        inverse: P.
        removed: S, a pytree of boolean arrays like the params.

    Returns:
        The new params, zero in S.

    Raises:
        ValueError: for an inverse or a `removed` unlike the params.
        TypeError: for a `removed` that is not boolean.

    Reference:
        The equality-constrained quadratic program; Singh and Alistarh 2020,
        arXiv:2004.14340, appendix on joint removal.
    """
    check = Check("ok.obs_joint")
    check_inverse(check, params, inverse)
    removed = check.booleans("removed", removed, params, "the params")
    rtol = 1e3 * max(jnp.finfo(w.dtype).eps for w in jax.tree.leaves(params))
    inner = invert(Masked(inverse, removed), CG(rtol=float(rtol)))
    multipliers = inner.mv(only(removed, params))
    return _removed(params, inverse.mv(only(removed, multipliers)), removed)


def _removed(params: Params, step: Params, removed: PyTree) -> Params:
    """The new w, w - step, zero where removed."""
    return jax.tree.map(
        lambda w, s, r: jnp.where(r, jnp.zeros_like(w), w - s), params, step, removed
    )
