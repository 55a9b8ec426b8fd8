"""The Neumann series: the inverse that K gradient steps approximate."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._results import RESULTS, first_failure
from .._vector import (
    add,
    all_finite,
    axpy,
    cast_like,
    dot,
    narrowest_eps,
    norm,
    normalised,
    normals,
    scale,
    widen,
    zeros_like,
)
from .base import AbstractIterative, Operator, Solved, System

_LANCZOS_STEPS = 10


class Neumann(AbstractIterative):
    """The first K terms of the Neumann series of A = C + λI.

        x = α Σ_{j=0..K-1} (I - αA)ʲ b

    This is exactly K steps of gradient descent on ½ xᵀAx - bᵀx from x = 0 with step
    size α. If A is the Hessian at a minimum, it equals differentiation through the last
    K steps of gradient descent with that step size. It converges for
    0 < α < 2/λ_max, but slowly: x is off by (I - αA)ᴷ, so directions of curvature below
    1/(αK) are damped. It is linear in b, unlike conjugate gradients stopped early, so
    means over many b stay unbiased. Truncation is not a failure; divergence is.

    If A is symmetric, it costs K products, and the last one yields the true residual,
    (I - αA)ᴷ b. Otherwise it costs K - 1 products. Terms may then grow for a while, so
    divergence is reported only if the last term has grown and exceeds the first.

    `stats` has `num_steps`, `step_size` and `residual`, the true |b - A x| / |b|, which
    is NaN if A is not symmetric.

    Args:
        num_terms: K >= 1.
        step_size: α > 0. Default 1/λ_max of a symmetric A. Ten Lanczos steps from a
            fixed random vector estimate λ_max when P is made; their residual is added.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**2), jnp.zeros(2))  # 2I
        >>> P = ok.invert(C, ok.Neumann(3, step_size=0.25))
        >>> print(P.mv(jnp.array([8.0, 16.0])))  # 2 + 1 + 0.5 of 4
        [3.5 7. ]

    Reference:
        Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590, section 4. Departs: (1)
        the paper's K counts products, so its sum has K + 1 terms.
    """

    num_terms: int = eqx.field(static=True)
    step_size: Any
    needs_symmetric: ClassVar[bool] = False

    def __init__(self, num_terms: int, step_size: Any = None) -> None:
        check = Check("ok.Neumann")
        check.count(num_terms=num_terms)
        check.optional.positive(step_size=step_size)
        self.num_terms, self.step_size = num_terms, step_size

    def factorise(self, operator: Operator) -> tuple[Array, Array]:
        """The step size, and whether a negative eigenvalue was found."""
        if self.step_size is not None:
            alpha = jnp.asarray(self.step_size, jnp.result_type(float))
            return alpha, jnp.zeros((), bool)
        Check("ok.Neumann(step_size=None)").symmetric(operator)
        smallest, largest = _extreme_eigenvalues(operator)
        eps = jnp.finfo(largest.dtype).eps
        is_indefinite = smallest < -10 * eps * jnp.maximum(largest, -smallest)
        # NaN is not <= 0, so it stays and is reported as a failure of the operator.
        return 1 / jnp.where(largest <= 0, 1, largest), is_indefinite

    def iterate(self, system: System, factor: PyTree) -> Solved:
        """Adds the terms one by one."""
        alpha, is_indefinite = factor
        alpha = alpha.astype(system.size.dtype)

        def next_term(_: Any, carry: Any) -> Any:
            total, term, size, _ = carry
            total = add(total, term)
            term = axpy(-alpha, system.product(term), term)
            return total, term, norm(term), size

        # The term after the last of a symmetric A is the residual, (I - αA)ᴷ b.
        num_steps = self.num_terms - (not system.is_symmetric)
        start = system.size
        first = (zeros_like(system.b), system.b, start, start)
        total, term, size, before = lax.fori_loop(0, num_steps, next_term, first)
        if system.is_symmetric:
            # On a log scale, the norms of the terms are convex in their number. Once
            # they grow by more than the rounding of products, they grow forever.
            slack = 10 * narrowest_eps(system.like)
            is_growing = size > before * (1 + slack) + slack * start
            is_growing |= size > start * (1 + slack)
            residual = size
        else:
            total = add(total, term)
            is_growing = (size > before) & (size > start)
            residual = jnp.full_like(size, jnp.nan)
        is_diverging = is_growing | ~jnp.isfinite(size) | ~all_finite(total)
        outcome = first_failure(
            (~jnp.isfinite(alpha), RESULTS.nonfinite_operator),
            (is_indefinite, RESULTS.indefinite),
            (is_diverging, RESULTS.diverging),
        )
        stats = {
            "num_steps": jnp.asarray(self.num_terms, jnp.int32),
            "step_size": alpha,
            "residual": residual,
        }
        return scale(alpha, total), outcome, stats


@eqx.filter_jit
def _extreme_eigenvalues(operator: Operator) -> tuple[Array, Array]:
    """Returns Lanczos' smallest eigenvalue, and the largest plus its residual.

    With T = VᵀAV, of diagonal a and off-diagonal β, and θ, s its last eigenpair,

        λ_max ≈ θ + |β_k s_k|, the norm of the residual of the Ritz vector
    """
    product = lx.linearise(operator).mv
    structure = operator.in_structure()
    num_steps = min(_LANCZOS_STEPS, max(operator.in_size(), 1))
    # Not signs: a small matrix may have an eigenvector of signs, and a start at an
    # eigenvector finds no other.
    v, _ = normalised(normals(jr.key(0), structure))

    def step(carry: Any, _: Any) -> tuple[Any, tuple[Array, Array]]:
        v, v_before, beta = carry
        w = widen(product(cast_like(v, structure)))
        a = dot(v, w)
        w = axpy(-beta, v_before, axpy(-a, v, w))
        following, _ = normalised(w)
        beta = dot(following, w)  # the norm of w, and 0 where that is 0
        return (following, v, beta), (a, beta)

    first = (v, zeros_like(v), jnp.zeros_like(dot(v, v)))
    _, (a, b) = lax.scan(step, first, None, length=num_steps)
    theta, s = jnp.linalg.eigh(jnp.diag(a) + jnp.diag(b[:-1], 1) + jnp.diag(b[:-1], -1))
    return theta[0], theta[-1] + jnp.abs(b[-1] * s[-1, -1])
