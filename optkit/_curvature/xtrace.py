"""XTrace: the trace of a curvature whose spectrum decays."""

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jaxtyping import Array

from .._check import Check
from .estimate import Estimate
from .leave_one_out import checked, dots, on_sphere, over_rows, sketch


def xtrace(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Estimates the trace of a symmetric operator by leaving each probe out in turn.

    Let ω_i be probes of norm √n in random directions, and Q_i an orthonormal basis of
    the products C ω_j with all others. The estimate is the mean over i of

        tr(Q_iᵀ C Q_i) + (n - k + 1) / |P_i ω_i|² · (P_i ω_i)ᵀ C P_i ω_i
        P_i = I - Q_i Q_iᵀ

    The first term is the trace on the span of the basis, and the second estimates the
    rest. The estimate is unbiased. If the eigenvalues decay, the error falls like that
    of the best approximation of rank k, much faster than the 1/√k of
    `ok.hutchinson_trace`. As soon as k exceeds the rank, only rounding error is left.
    If the eigenvalues do not decay, the error is about that of `ok.hutchinson_trace`.

    It takes 2k products, one after the other, and stores 4k vectors like the params in
    float32 or wider.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, at most the number of params.

    Returns:
        An `ok.Estimate` of two scalars. The k values are not independent, but
        exchangeable, and their spread is a good estimate of the error. One probe has
        no standard error.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.arange(12.0).reshape(2, 6))  # of rank 2
        >>> print(ok.xtrace(C, key=jax.random.key(0), num_probes=3).mean.round(2))
        506.0

    Reference:
        Epperly, Tropp and Webber 2024, arXiv:2301.07825, sections 2 and 3.
    """
    check = Check("ok.xtrace")
    checked(check, operator, key, num_probes)
    n, k = operator.in_size(), num_probes
    probe_key, key = jr.split(key)
    omega = on_sphere(probe_key, operator.in_structure(), k, n)
    Q, R, S, Z, size = sketch(operator, omega, key)
    H, W = dots(Q, Z), dots(Q, omega)
    ws, rs = jnp.sum(W * S, axis=0), jnp.sum(R * S, axis=0)
    X = W - S * ws[None]  # Q_iᵀ ω_i, in the basis Q
    # C ω_i = Q r_i, so no product is needed for what is left.
    left = ws * rs - jnp.sum(R * X, axis=0) + jnp.sum(X * (H @ X), axis=0)
    factor = (n - k + 1) / (n - jnp.sum(X * X, axis=0))
    held = jnp.trace(H) - jnp.sum(S * (H @ S), axis=0)
    return over_rows(size * (held + factor * left))
