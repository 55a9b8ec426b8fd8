"""XDiag: the diagonal of a curvature whose spectrum decays."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array

from .._check import Check
from .._types import Params
from .._vector import cast_like, combine, multiply, scale, signs, subtract, widen
from .estimate import Estimate
from .leave_one_out import checked, over_rows, sketch


def xdiag(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Estimates the diagonal of a symmetric operator by leaving each probe out in turn.

    Let ω_i be random signs, and Q_i an orthonormal basis of the products C ω_j with all
    other probes. The estimate is the mean over i of

        diag(Q_i Q_iᵀ C) + ω_i ∘ (C - Q_i Q_iᵀ C) ω_i

    It is unbiased. The first term is exact on the span of the basis; only the rest has
    the variance of `ok.hutchinson_diag`. So it pays if the eigenvalues decay.

    It takes 2k products, one after the other, and stores 5k vectors like the params in
    float32 or wider.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, at most the number of params.

    Returns:
        An `ok.Estimate` of two pytrees like the params; one probe has no standard
        error.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.arange(1.0, 6.0).reshape(1, 5))  # of rank 1
        >>> print(ok.xdiag(C, key=jax.random.key(0), num_probes=3).mean.round(2))
        [ 1.  4.  9. 16. 25.]

    Reference:
        Epperly, Tropp and Webber 2024, arXiv:2301.07825, section 4.
    """
    check = Check("ok.xdiag")
    checked(check, operator, key, num_probes)
    structure = operator.in_structure()
    probe_key, key = jr.split(key)
    keys = jr.split(probe_key, num_probes)
    omega = lax.map(lambda key: widen(signs(key, structure)), keys)
    Q, R, S, Z, size = sketch(operator, omega, key)
    whole = jax.tree.map(lambda q, z: jnp.sum(q * z, axis=0), Q, Z)  # diag(QQᵀC)

    def one(item: tuple[Array, Array, Params]) -> Params:
        s, r, w = item
        out = combine(s, Q)  # the direction that the i-th probe adds
        left = scale(jnp.vdot(s, r), multiply(w, out))
        return jax.tree.map(
            jnp.add, left, subtract(whole, multiply(out, combine(s, Z)))
        )

    mean, error = over_rows(scale(size, lax.map(one, (S.T, R.T, omega))))
    error = None if error is None else cast_like(error, structure)
    return Estimate(cast_like(mean, structure), error)
