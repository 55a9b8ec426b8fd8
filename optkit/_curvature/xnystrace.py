"""XNysTrace: the trace of a positive semidefinite curvature, in half the products."""

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import lineax as lx
from jaxtyping import Array

from .._check import Check
from .._vector import axpy, combine, gram, norm, over_peak
from .estimate import Estimate
from .leave_one_out import checked, dots, on_sphere, over_rows, products


def xnystrace(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int
) -> Estimate:
    """Estimates the trace of a positive semidefinite operator by Nyström's method.

    Let ω_i be probes of norm √n in random directions, and Ω_i all of them but ω_i. The
    estimate is the mean over i of

        tr N_i + (n - k + 1) / |P_i ω_i|² · ω_iᵀ (C - N_i) ω_i
        N_i = C Ω_i (Ω_iᵀ C Ω_i)⁻¹ Ω_iᵀ C,    P_i removes the span of Ω_i

    N_i is Nyström's approximation. With Y = CΩ and H = ΩᵀY, no i needs a
    factorisation of its own:

        tr N_i = tr(H⁻¹ YᵀY) - (H⁻¹ YᵀY H⁻¹)_ii / (H⁻¹)_ii
        ω_iᵀ (C - N_i) ω_i = 1 / (H⁻¹)_ii    |P_i ω_i|² = 1 / ((ΩᵀΩ)⁻¹)_ii

    It takes k products, half as many as `ok.xtrace`. For the same number of products,
    it is more accurate. It stores 3k vectors like the params in float32 or wider.

    Args:
        operator: a Lineax operator known to be positive semidefinite, such as
            `ok.gauss_newton(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, at most the number of params.

    Returns:
        An `ok.Estimate` of two scalars, NaN if the operator is not positive
        semidefinite after all. If the eigenvalues fall fast, the standard error is too
        small, by a factor of up to three in our tests. One probe has none.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.arange(12.0).reshape(2, 6))  # of rank 2
        >>> print(ok.xnystrace(C, key=jax.random.key(0), num_probes=3).mean.round(1))
        506.0

    Reference:
        Epperly, Tropp and Webber 2024, arXiv:2301.07825, sections 2.4 and 5. Y is
        shifted by ν Ω, with ν = eps |Y| / √n, and ν n is subtracted at the end.
    """
    check = Check("ok.xnystrace")
    checked(check, operator, key, num_probes)
    text = "needs an operator known to be positive semidefinite. If it is, tag it with"
    text = f"{text} `lx.positive_semidefinite_tag`; if not, use `ok.xtrace`."
    check.that(lx.is_positive_semidefinite(operator), text)
    n, k = operator.in_size(), num_probes
    omega = on_sphere(key, operator.in_structure(), k, n)
    Y, size = over_peak(products(operator, omega))
    nu = jnp.finfo(norm(Y).dtype).eps * norm(Y) / n**0.5
    is_zero = nu == 0
    nu = jnp.where(is_zero, 1, nu)
    Y = axpy(nu, omega, Y)
    H = dots(omega, Y)
    L = jnp.linalg.cholesky((H + H.T) / 2)
    half = jsp.linalg.solve_triangular(L, jnp.eye(k, dtype=L.dtype), lower=True)  # L⁻¹
    B = gram(jax.lax.map(lambda c: combine(c, Y), half))  # L⁻¹ YᵀY L⁻ᵀ
    inverse = jnp.sum(half * half, axis=0)  # of H, its diagonal
    dropped = jnp.sum(half * (B @ half), axis=0) / inverse
    spread = jnp.diag(jnp.linalg.inv(gram(omega)))
    left = (n - k + 1) * spread / inverse
    total = jnp.trace(B) - dropped + left - nu * n
    return over_rows(size * jnp.where(is_zero, 0, total))
