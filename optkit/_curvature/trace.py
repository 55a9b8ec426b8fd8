"""The trace of a curvature by random probes: E[zᵀCz] = tr C for random signs z."""

import lineax as lx
from jaxtyping import Array

from .._check import Check
from .._vector import dot
from .estimate import Estimate, over_probes


def hutchinson_trace(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Estimates the trace of a symmetric operator by zᵀCz, averaged over probes.

    With random signs z, it is unbiased. One probe has variance 2 Σ_{i≠j} C_ij², so it
    is exact for a diagonal C. With k probes the error falls as 1/√k.

    If the spectrum decays, `ok.xtrace` and `ok.xnystrace` need far fewer products, but
    they store a vector for each. The trace of `C @ C` is the squared Frobenius norm.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, the number of products. Call this under `jax.jit`;
            otherwise each call traces the operator again.

    Returns:
        An `ok.Estimate` of two scalars; one probe has no standard error.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**3), jnp.array([1.0, 2.0]))
        >>> print(ok.hutchinson_trace(C, key=jax.random.key(0), num_probes=2).mean)
        18.0

    Reference:
        Hutchinson 1990, A stochastic estimator of the trace of the influence matrix.
    """
    check = Check("ok.hutchinson_trace")
    return over_probes(check, operator, key, num_probes, dot)
