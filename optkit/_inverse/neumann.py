"""The Neumann series: the inverse that a fixed number of gradient steps implies."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import (
    check_positive,
    check_positive_int,
)
from .._results import (
    RESULTS,
    first_failure,
)
from .._types import (
    Params,
    wide_dtype,
)
from .._vector import (
    all_finite,
    axpy,
    cast_like,
    dot,
    explicit_sharding,
    normalised,
    widen,
)
from .base import AbstractInverse, check_matrix_free

_LANCZOS_STEPS = 10


class Neumann(AbstractInverse):
    """The first K terms of the Neumann series of A = C + λI.

        x = α Σ_{j=0..K-1} (I - αA)ʲ b

    It is exactly what K steps of gradient descent on ½ xᵀAx - bᵀx from x = 0 give
    with step size α; so, with A the Hessian at a minimum, differentiating through the
    last K steps of an inner gradient descent of that step size. It converges for
    0 < α < 2/λ_max, slowly: x is off by (I - αA)ᴷ, so directions of curvature below
    1/(αK) are damped. Linear in b, unlike conjugate gradients stopped early, so means
    over many b stay unbiased. Truncation is not a failure; divergence is reported.

    Costs K products, the last of which yields the true residual, (I - αA)ᴷ b.

    `stats` has `num_steps`, `step_size` and `residual`, the true |b - A x| / |b|.

    Args:
        num_terms: K >= 1.
        step_size: α > 0. None takes 1/λ_max, estimated when P is made by ten
            Lanczos steps from a fixed random vector, plus their residual for safety.

    Raises:
        ValueError: for num_terms < 1 or step_size <= 0.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**2), jnp.zeros(2))  # 2I
        >>> P = ok.invert(C, ok.Neumann(3, step_size=0.25))
        >>> print(P.mv(jnp.array([8.0, 16.0])))  # 2 + 1 + 0.5 of 4
        [3.5 7. ]

    Reference:
        Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590, section 4. Departs: the
        paper's K counts products, so that its sum has K + 1 terms.
    """

    num_terms: int
    step_size: Any

    def __init__(self, num_terms: int, step_size: Any = None) -> None:
        check_positive_int("ok.Neumann", "num_terms", num_terms)
        if step_size is not None:
            check_positive("ok.Neumann", "step_size", step_size)
        self.num_terms, self.step_size = num_terms, step_size

    def factorise(self, operator: lx.AbstractLinearOperator) -> tuple[Array, Array]:
        """The step size, and whether an eigenvalue was seen to be negative."""
        check_matrix_free("ok.Neumann", operator)
        if self.step_size is not None:
            alpha = jnp.asarray(self.step_size, jnp.result_type(float))
            return alpha, jnp.zeros((), bool)
        smallest, largest = _extreme_eigenvalues(operator)
        eps = jnp.finfo(largest.dtype).eps
        is_indefinite = smallest < -10 * eps * jnp.maximum(largest, -smallest)
        # NaN is not <= 0: it stays, and is reported as the operator's.
        return 1 / jnp.where(largest <= 0, 1, largest), is_indefinite

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: PyTree, vector: Params
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Adds the terms one by one."""
        alpha, is_indefinite = factor
        product = lx.linearise(operator).mv
        b, scale = normalised(vector)
        alpha = alpha.astype(scale.dtype)

        def next_term(_: Any, carry: Any) -> Any:
            total, term, norm, _ = carry
            total = jax.tree.map(jnp.add, total, term)
            term = axpy(-alpha, product(cast_like(term, vector)), term)
            return total, term, jnp.sqrt(dot(term, term)), norm

        zeros = jax.tree.map(jnp.zeros_like, b)
        start = jnp.sqrt(dot(b, b))
        total, _, norm, before = lax.fori_loop(
            0, self.num_terms, next_term, (zeros, b, start, start)
        )
        # For a symmetric A, the norm of the terms is convex in their number on a log
        # scale: once it grows, it grows for ever. Up to rounding of the products.
        eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(vector)])
        is_growing = norm > before * (1 + 10 * eps) + 10 * eps * start
        is_growing |= (norm > start * (1 + 10 * eps)) | ~jnp.isfinite(norm)
        outcome = first_failure(
            (~jnp.isfinite(scale), RESULTS.nonfinite_input),
            (~jnp.isfinite(alpha), RESULTS.nonfinite_operator),
            (is_indefinite, RESULTS.indefinite),
            (is_growing | ~all_finite(total), RESULTS.diverging),
        )
        scale = scale * alpha
        x = jax.tree.map(lambda a: a * scale.astype(a.dtype), total)
        stats = {
            "num_steps": jnp.asarray(self.num_terms, jnp.int32),
            "step_size": alpha,
            "residual": norm,
        }
        return cast_like(x, vector), outcome, stats


@eqx.filter_jit
def _extreme_eigenvalues(operator: lx.AbstractLinearOperator) -> tuple[Array, Array]:
    """Lanczos' smallest eigenvalue, and a largest one that errs on the large side.

    T = VᵀAV with diagonal a and off-diagonal β;    θ, s its last eigenpair
    λ_max ≈ θ + |β_k s_k|, the norm of the residual of the Ritz vector

    Returns:
        The smallest θ and that λ_max.
    """
    product = lx.linearise(operator).mv
    structure = operator.in_structure()
    num_steps = min(_LANCZOS_STEPS, max(operator.in_size(), 1))
    leaves, treedef = jax.tree.flatten(structure)
    keys = jr.split(jr.key(0), max(len(leaves), 1))
    v, _ = normalised(treedef.unflatten(map(_normal, keys, leaves)))

    def step(carry: Any, _: Any) -> tuple[Any, tuple[Array, Array]]:
        v, v_before, beta = carry
        w = widen(product(cast_like(v, structure)))
        a = dot(v, w)
        w = axpy(-beta, v_before, axpy(-a, v, w))
        following, _ = normalised(w)
        beta = dot(following, w)  # the norm of w, and 0 where that is 0
        return (following, v, beta), (a, beta)

    zero = jax.tree.map(jnp.zeros_like, v)
    beta = jnp.zeros_like(dot(v, v))
    _, (a, b) = lax.scan(step, (v, zero, beta), None, length=num_steps)
    theta, s = jnp.linalg.eigh(jnp.diag(a) + jnp.diag(b[:-1], 1) + jnp.diag(b[:-1], -1))
    return theta[0], theta[-1] + jnp.abs(b[-1] * s[-1, -1])


# Not signs: eigenvectors of small matrices have such entries, and from an eigenvector
# Lanczos sees no other.
def _normal(key: Array, like: jax.ShapeDtypeStruct) -> Array:
    z = jr.normal(key, like.shape, wide_dtype(like))
    sharding = explicit_sharding(like)
    return z if sharding is None else jax.sharding.reshard(z, sharding)
