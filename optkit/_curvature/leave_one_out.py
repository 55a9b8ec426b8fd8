"""What the exchangeable estimators share: probes, their products, leaving one out.

k probes give the columns of Y = CΩ, and Q is an orthonormal basis of them, Y = QR. The
basis Q_i of all columns but the i-th needs no new factorisation: with s_i the i-th
column of R⁻ᵀ, of norm one,

    Q_i Q_iᵀ = Q (I - s_i s_iᵀ) Qᵀ

So each probe serves twice: in the bases of the k - 1 others, and for what its own basis
Q_i leaves out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jax.scipy as jsp
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._vector import (
    cast_like,
    combine,
    common_dtype,
    norm,
    normals,
    num_rows,
    over_peak,
    project,
    scale,
    subtract,
    widen,
    zero_rows,
)
from .estimate import Estimate


class Sketch(NamedTuple):
    """The products of an operator with an orthonormal basis of its products."""

    Q: PyTree  # k orthonormal rows
    R: Float[Array, "k k"]  # over the size
    S: Float[Array, "k k"]  # columns s_i
    Z: PyTree  # rows C q, over the size
    size: Float[Array, ""]  # of the products


def checked(
    check: Check, operator: lx.AbstractLinearOperator, key: Any, num_probes: Any
) -> None:
    """Raises unless the arguments are good."""
    check.symmetric(operator)
    check.count(num_probes=num_probes)
    check.key(key)
    size = operator.in_size()
    check.at_most(size, "the number of params", num_probes=num_probes)


def products(operator: lx.AbstractLinearOperator, rows: PyTree) -> PyTree:
    """The product with each row, in float32 or wider."""
    linear, structure = lx.linearise(operator), operator.in_structure()
    return lax.map(lambda z: widen(linear.mv(cast_like(z, structure))), rows)


def on_sphere(key: Array, structure: PyTree, num_probes: int, size: int) -> PyTree:
    """Random rows of norm √n in all directions, in float32 or wider."""

    def draw(key: Array) -> PyTree:
        z = normals(key, structure)
        return scale(size**0.5 / norm(z), z)

    return lax.map(draw, jr.split(key, num_probes))


def sketch(operator: lx.AbstractLinearOperator, probes: PyTree, key: Array) -> Sketch:
    """Q, R, S and Z of the products with the probes: 2k products."""
    Y, size = over_peak(products(operator, probes))
    Q, R = _orthonormal(Y, key)
    # If the others span a row, R_jj is 0. A tiny R_jj keeps R invertible.
    tiny = jnp.finfo(R.dtype).eps * jnp.max(jnp.abs(R), initial=1)
    full = R + jnp.diag(jnp.where(jnp.diag(R) == 0, tiny, 0))
    inverse = jsp.linalg.solve_triangular(full, jnp.eye(len(R), dtype=R.dtype), trans=1)
    S = inverse / jnp.max(jnp.abs(inverse), axis=0, keepdims=True)
    S = S / jnp.linalg.norm(S, axis=0, keepdims=True)
    return Sketch(Q, R, S, scale(1 / size, products(operator, Q)), size)


def dots(rows: PyTree, others: PyTree) -> Float[Array, "k k"]:
    """The dot products of each row (down) with each of the others (across)."""
    return lax.map(lambda z: project(rows, z), others).T


def over_rows(estimates: PyTree) -> Estimate:
    """The mean of k estimates along the leading axis, and its standard error."""
    k = num_rows(estimates)
    mean = jax.tree.map(lambda e: jnp.mean(e, axis=0), estimates)
    if k == 1:
        return Estimate(mean, None)
    spread = jax.tree.map(lambda e: jnp.std(e, axis=0, ddof=1) / k**0.5, estimates)
    return Estimate(mean, spread)


def _orthonormal(Y: PyTree, key: Array) -> tuple[PyTree, Float[Array, "k k"]]:
    """Orthonormal rows Q, and R with Y_j = Σ_a R_aj Q_a, by Gram-Schmidt twice."""
    dtype, k = common_dtype(Y), num_rows(Y)
    eps = jnp.finfo(dtype).eps

    def orthogonal(y: PyTree, Q: PyTree) -> tuple[PyTree, Array]:
        total = jnp.zeros(k, dtype)
        for _ in range(2):  # the first pass leaves errors from cancellation
            c = project(Q, y)
            y, total = subtract(y, combine(c, Q)), total + c
        return y, total

    def step(Q: PyTree, item: tuple[Array, PyTree]) -> tuple[PyTree, Array]:
        j, y = item
        length = norm(y)
        w, column = orthogonal(y, Q)
        beta = norm(w)
        # Below this, w is rounding error: the other products span this one. Any unit
        # vector will do, with R_jj = 0, since nothing is left for it.
        is_lost = beta <= 10 * eps * length

        def restart() -> PyTree:
            z, _ = orthogonal(normals(jr.fold_in(key, j), w), Q)
            return scale(1 / norm(z), z)

        safe = jnp.where(is_lost, 1, beta)
        q = lax.cond(is_lost, restart, lambda: scale(1 / safe, w))
        column = column.at[j].set(jnp.where(is_lost, 0, beta))
        return jax.tree.map(lambda u, a: u.at[j].set(a), Q, q), column

    first = jax.tree.map(lambda u: u[0], Y)
    items = jnp.arange(k, dtype=jnp.int32), Y
    Q, columns = lax.scan(step, zero_rows(k, first), items)
    return Q, columns.T
