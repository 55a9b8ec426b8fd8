"""Projections onto the solutions of linear equations."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._check import Check
from .._types import wide_dtype
from .._vector import gathered
from .sets import like, nan_if_empty


def affine_set(x: Array, A: Array, b: Array) -> Float[Array, " n"]:
    """Returns the nearest point with A p = b.

        p = x + A⁺(b - A x)

    Rows of A may be linearly dependent. Derivatives in A and b then hold only for joint
    changes that keep the rank of A and leave a solution.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> A, b = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
        >>> print(ok.projections.affine_set(jnp.array([2.0, 1.0]), A, b).round(3))
        [1. 0.]
    """
    check_rows(Check("ok.projections.affine_set"), x, A=A, b=b)
    x_, A, b = (a.astype(wide_dtype(x)) for a in gathered((x, A, b)))
    p, is_met = nearest(x_, *near_one(A, b))
    return like(nan_if_empty(is_met, p, x_, A, b), x)


def near_one(A: Array, b: Array) -> tuple[Array, Array]:
    """The equations, scaled so that the largest entry of each row is 1."""
    peaks = jnp.max(jnp.abs(lax.stop_gradient(A)), axis=1, initial=0)
    peaks = jnp.where(peaks > 0, peaks, 1)
    return A / peaks[:, None], b / peaks


def nearest(x: Array, A: Array, b: Array) -> tuple[Array, Bool[Array, ""]]:
    """The projection onto A p = b, and whether the equations have a solution."""
    if not A.shape[0]:
        return x, jnp.ones_like(x, bool, shape=())
    norms = jnp.linalg.norm(lax.stop_gradient(A), axis=1)
    norms = jnp.where(norms > 0, norms, 1)
    A, b = A / norms[:, None], b / norms
    K = pseudo_inverse(A)
    p = x + product(K, b - product(A, x))
    # One step of refinement. It would be 0 in exact arithmetic.
    p = p + lax.stop_gradient(product(K, b - product(A, p)))
    return p, jnp.all(jnp.abs(product(A, p) - b) <= slack(A, b, x, p))


@jax.custom_jvp
def pseudo_inverse(A: Float[Array, "k n"]) -> Float[Array, "n k"]:
    """A⁺, without the singular values that rounding may have made."""
    u, s, vt = jnp.linalg.svd(A, full_matrices=False)
    floor = max(A.shape) * jnp.finfo(A.dtype).eps * jnp.max(s, initial=0)
    inverse = jnp.where(s > floor, 1 / jnp.where(s > floor, s, 1), 0)
    return product(vt.T * inverse[None], u.T)


# Golub and Pereyra 1973, SIAM Journal on Numerical Analysis 10, equation 4.12. Along
# changes that keep the rank,
#     dA⁺ = - A⁺ dA A⁺ + A⁺A⁺ᵀ dAᵀ (I - A A⁺) + (I - A⁺A) dAᵀ A⁺ᵀA⁺.
# Without this rule, JAX would need derivatives of singular vectors, which may not
# exist.
@pseudo_inverse.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (A,), (dA,) = primals, tangents
    K = pseudo_inverse(A)
    from_left = product(K, product(K.T, dA.T - product(dA.T, product(A, K))))
    from_right = product(dA.T - product(K, product(A, dA.T)), product(K.T, K))
    return K, from_left + from_right - product(product(K, dA), K)


def slack(A: Array, b: Array, x: Array, p: Array) -> Array:
    """How far rounding may put A p from b, if p is computed from x."""
    A, b, x, p = lax.stop_gradient((A, b, x, p))
    eps = jnp.finfo(x.dtype).eps
    size = jnp.linalg.norm(p) + 100 * jnp.sqrt(eps) * jnp.linalg.norm(x)
    return jnp.sqrt(eps) * (jnp.linalg.norm(A, axis=1) * size + jnp.abs(b))


def product(a: Array, b: Array) -> Array:
    """A product in full precision."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def check_rows(check: Check, x: Array, **parts: Array) -> None:
    """Raises unless matrix @ x - right is a real vector."""
    check.vector(x=x)
    check.real(**parts)
    (name, matrix), (_, right) = parts.items()
    shape = (*jnp.shape(right), jnp.size(x))
    check.shapes("For many, use `jax.vmap`.", **{name: (matrix, shape)})
