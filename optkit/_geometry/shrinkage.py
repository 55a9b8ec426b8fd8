"""Proximal operators of norms of vectors and of singular values: part of `ok.prox`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, reshard
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import Check
from .._vector import common_dtype, explicit_sharding, safe_norm, scale
from .entrywise import Strength, map_entries


def group_lasso(v: PyTree, strength: ArrayLike, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of r(y) = strength |y|, soft-thresholding v as one group.

        y = max(1 - t strength / |v|, 0) v

    The norm is over all leaves, and the strength is one number. At v = 0, y and its
    derivatives are 0. For many groups, map it: `jax.vmap(ok.prox.group_lasso, (0, None,
    None))` over the rows of a matrix, `jax.tree.map` over the leaves of a tree.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.group_lasso(jnp.array([3.0, -4.0]), 2.5))
        [ 1.5 -2. ]
    """
    check = Check("ok.prox.group_lasso")
    check.real(v=v)
    check.non_negative(strength=strength, step_size=step_size)
    advice = "v is one group. For many, use `jax.vmap` or `jax.tree.map`."
    check.shapes(advice, strength=(strength, ()), step_size=(step_size, ()))
    dtype = common_dtype(v)
    threshold = jnp.asarray(step_size, dtype) * jnp.asarray(strength, dtype)
    norm = safe_norm(v)
    is_zero = norm == 0
    ratio = threshold / jnp.where(is_zero, 1, norm)
    factor = jnp.where(is_zero, (threshold <= 0).astype(dtype), jax.nn.relu(1 - ratio))
    return scale(factor, v)


def nuclear(v: PyTree, strength: Strength, step_size: ArrayLike = 1.0) -> PyTree:
    """Returns the prox of the nuclear norm, soft-thresholding singular values.

        v = U diag(s) Vᵀ        y = U diag(max(s - t strength, 0)) Vᵀ

    Each leaf is a matrix, or a stack of matrices along its leading axes; the strength
    is one number, or one per leaf. Unlike the singular value decomposition, y has a
    derivative where singular values are equal. Second derivatives need distinct ones.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.prox.nuclear(jnp.diag(jnp.array([3.0, 1.0])), 2.0).round(3))
        [[1. 0.]
         [0. 0.]]
    """
    is_matrix = all(jnp.ndim(leaf) >= 2 for leaf in jax.tree.leaves(v))
    text = "needs matrices, got a leaf with fewer than two axes."
    Check("ok.prox.nuclear").that(is_matrix, text)

    def one(v: Array, t: Array, strength: Array) -> Array:
        tau = jnp.broadcast_to(t * strength, v.shape[:-2])
        if (sharding := explicit_sharding(v)) is None:
            return _shrink(v, tau)
        spec = PartitionSpec(*sharding.spec[:-2])  # each matrix whole on its device
        whole = reshard(v, NamedSharding(sharding.mesh, spec))
        return reshard(_shrink(whole, tau), sharding)

    return map_entries("nuclear", one, v, step_size, strength=strength)


@jax.custom_jvp
def _shrink(x: Float[Array, "*b m n"], tau: Float[Array, "*b"]) -> Array:
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    return (u * jax.nn.relu(s - tau[..., None])[..., None, :]) @ vt


# With f the thresholded s, M = Uᵀ dX V and i, j over singular values, the derivative of
# the spectral function U f(S) Vᵀ is
#     U (Γ ∘ (M + Mᵀ)/2 + Δ ∘ (M - Mᵀ)/2) Vᵀ,
#     Γ = (f_i - f_j) / (s_i - s_j)       Δ = (f_i + f_j) / (s_i + s_j)
# plus f_i / s_i times the parts of dX outside the spans of U and of V. Γ is 1 if both s
# pass the threshold and 0 if neither does, so equal s are never subtracted. A threshold
# of 0 is passed by all, also by s = 0.
@_shrink.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, tau), (dx, dtau) = primals, tangents
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    ut, v = jnp.swapaxes(u, -1, -2), jnp.swapaxes(vt, -1, -2)
    f = jax.nn.relu(s - tau[..., None])
    is_lowered = s > tau[..., None]
    passes = is_lowered | (tau[..., None] <= 0)
    rows, columns = passes[..., :, None], passes[..., None, :]
    is_mixed = rows != columns
    gap = jnp.where(is_mixed, s[..., :, None] - s[..., None, :], 1)
    mixed = (f[..., :, None] - f[..., None, :]) / gap
    gamma = jnp.where(is_mixed, mixed, (rows & columns).astype(s.dtype))
    total = s[..., :, None] + s[..., None, :]
    at_zero = (tau <= 0).astype(s.dtype)[..., None]
    delta = _divide(f[..., :, None] + f[..., None, :], total, at_zero[..., None])
    ratio = _divide(f, s, at_zero)

    m = ut @ dx @ v
    mt = jnp.swapaxes(m, -1, -2)
    inner = gamma * (m + mt) / 2 + delta * (m - mt) / 2
    eye = jnp.eye(s.shape[-1], dtype=s.dtype)
    lowered = jnp.where(is_lowered, dtau[..., None], 0)
    inner = inner - eye * lowered[..., None, :]
    dy = u @ inner @ vt
    left = (dx - u @ (ut @ dx)) @ v * ratio[..., None, :]
    right = ratio[..., :, None] * (ut @ (dx - (dx @ v) @ vt))
    return (u * f[..., None, :]) @ vt, dy + left @ vt + u @ right


def _divide(a: Array, b: Array, otherwise: Array) -> Array:
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), otherwise)
