"""The spectrum of a curvature from products: stochastic Lanczos quadrature.

From a start z, s steps of Lanczos' method yield a small tridiagonal matrix T. Its
eigenvalues θ and the squared first entries w of its eigenvectors are the nodes and
weights of a Gauss quadrature:

    Σ_j w_j f(θ_j)  =  zᵀ f(C) z        exactly, for polynomials f of degree < 2s

If z has random signs over √n, the right-hand side has mean tr f(C)/n, the mean of f
over the eigenvalues. Vectors are pytrees like the params, so sharded leaves stay where
they are.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._types import Params
from .._vector import (
    cast_like,
    combine,
    common_dtype,
    dot,
    norm,
    normals,
    project,
    signs,
    subtract,
    widen,
    zero_rows,
)
from .estimate import Estimate


class Spectrum(eqx.Module):
    """Estimated eigenvalues of a curvature, from k probes of s products each.

    Made by `ok.spectrum`. Each row of `nodes` is one probe's estimate, in ascending
    order, of where the n = `size` eigenvalues lie: a node of weight w stands for about
    n w of them. The `weights` of a row sum to one. Up to rounding, an eigenvalue lies
    within `errors` of each node; the error of the largest node falls first. `vectors`,
    if asked for, are approximate eigenvectors of norm one for the last nodes of each
    row: |C v - node v| is the node's error.
    """

    nodes: Float[Array, "k s"]
    weights: Float[Array, "k s"]
    errors: Float[Array, "k s"]
    size: int = eqx.field(static=True)
    vectors: PyTree | None = None  # like the params, with leading axes k and r

    def mean(self, fn: Callable[[Array], Array]) -> Estimate:
        """Returns an `ok.Estimate` of the mean of fn over the eigenvalues, tr f(C)/n.

        `spectrum.size * spectrum.mean(lambda x: x / (x + damping)).mean` is the
        effective dimension, and `spectrum.mean(lambda x: x < 0)` the fraction of
        negative eigenvalues. `fn` acts entry by entry. The standard error is over the
        probes; it leaves out the quadrature error, which falls with the products.
        """
        values = jnp.asarray(fn(self.nodes), self.weights.dtype)
        terms = jnp.where(self.weights == 0, 0, self.weights * values)
        return _over_probes(jnp.sum(terms, axis=1))

    def density(self, at: Float[Array, " g"], width: Any) -> Estimate:
        """Returns an `ok.Estimate` of the density of the eigenvalues at points.

        The density is smoothed by a Gaussian whose standard deviation is `width`, and
        integrates to one.
        """
        dtype = self.nodes.dtype
        at, width = jnp.asarray(at, dtype), jnp.asarray(width, dtype)
        offsets = (at[:, None, None] - self.nodes[None]) / width
        heights = jax.scipy.stats.norm.pdf(offsets) / width
        return _over_probes(jnp.sum(self.weights[None] * heights, axis=2).T)


def spectrum(
    operator: lx.AbstractLinearOperator,
    *,
    key: Array,
    num_probes: int,
    num_steps: int,
    num_vectors: int | None = None,
) -> Spectrum:
    """Estimates the eigenvalues of a symmetric operator and their density.

    The ends of the spectrum, such as `spectrum.nodes[:, -1]`, are accurate to many
    digits. A dense interior is smeared over few nodes. If fewer than s eigenvalues are
    distinct, the method finds all of them and restarts from a new random vector.

    It takes k s products, one after the other, and stores s vectors like the params in
    float32 or wider. Each new vector is orthogonalised twice against all before it.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, the number of starts; standard errors fall as 1/√k.
        num_steps: s, the products per start, at most the number of params.
        num_vectors: r <= s, how many eigenvectors to return for each start, those of
            `nodes[:, -r:]`; default none. For the other end, pass `-1.0 * C`.

    Returns:
        An `ok.Spectrum`, which `ok.plot.spectrum` draws. It is not finite if a product
        is not.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**3), jnp.array([0.5, 1.0, 2.0]))
        >>> s = ok.spectrum(C, key=jax.random.key(0), num_probes=2, num_steps=3)
        >>> print(s.nodes[0].round(4), s.mean(jnp.square).mean.round(4))
        [ 3.  6. 12.] 63.0
        >>> s = ok.spectrum(
        ...     C, key=jax.random.key(0), num_probes=1, num_steps=3, num_vectors=1)
        >>> print(abs(s.vectors[0, 0]).round(3))  # of the eigenvalue 12
        [0. 0. 1.]

    Reference:
        Golub and Meurant 1994, Matrices, moments and quadrature; Ubaru, Chen and Saad
        2017, Fast estimation of tr f(A) via stochastic Lanczos quadrature. Departs:
        (1) restarts when the Krylov space is exhausted.
    """
    check = Check("ok.spectrum")
    check.symmetric(operator)
    check.key(key)
    check.count(num_probes=num_probes, num_steps=num_steps)
    size = operator.in_size()
    check.at_most(size, "the number of params", num_steps=num_steps)
    check.optional.count(num_vectors=num_vectors)
    r = num_vectors or 0
    check.at_most(num_steps, "which is `num_steps`", num_vectors=r)
    linear = lx.linearise(operator)

    def one(key: Array) -> tuple[Array, Array, Array, PyTree | None]:
        key, probe_key = jr.split(key)
        z = widen(signs(probe_key, operator.in_structure()))
        start = _over(z, size**0.5)
        Q, (alpha, beta) = lanczos(linear, start, key, num_steps)
        matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        last = vectors[:, num_steps - r :].T
        found = lax.map(lambda c: combine(c, Q), last) if r else None
        return nodes, vectors[0] ** 2, jnp.abs(beta[-1] * vectors[-1]), found

    nodes, weights, errors, found = lax.map(one, jr.split(key, num_probes))
    return Spectrum(nodes, weights, errors, size, found)


def lanczos(
    operator: lx.AbstractLinearOperator, start: Params, key: Array, num_steps: int
) -> tuple[Params, tuple[Float[Array, " s"], Float[Array, " s"]]]:
    """Returns Q, and α and β, of Lanczos' method with full orthogonalisation.

    With q_0 the start, of norm one, in float32 or wider, and Q the rows q_0, ..., q_j:

        w = C q_j    α_j = q_jᵀw    w ← w - QᵀQw, twice    β_j = |w|    q_{j+1} = w/β_j

    The last β is the norm of the remainder of C q_{s-1}. If w vanishes, β_j = 0 and
    q_{j+1} is random, from the key.
    """
    dtype, structure = common_dtype(start), operator.in_structure()

    def product(q: Params) -> Params:
        return widen(operator.mv(cast_like(q, structure)))

    def orthogonal(w: Params, rows: Params) -> Params:
        for _ in range(2):  # the first pass leaves errors from cancellation
            w = subtract(w, combine(project(rows, w), rows))
        return w

    def step(carry: Any, j: Array) -> tuple[Any, tuple[Array, Array]]:
        rows, q = carry
        rows = jax.tree.map(lambda u, a: u.at[j].set(a), rows, q)
        w = product(q)
        alpha, length = dot(q, w), norm(w)
        w = orthogonal(w, rows)
        beta = norm(w)
        # Below this, w is rounding error and not orthogonal to the rows.
        is_lost = beta <= 10 * jnp.finfo(dtype).eps * length

        def restart() -> Params:
            # Not signs: with few entries, they often lie in the span of the rows.
            z = orthogonal(normals(jr.fold_in(key, j), q), rows)
            return _over(z, norm(z))

        q = lax.cond(is_lost, restart, lambda: _over(w, jnp.where(is_lost, 1, beta)))
        return (rows, q), (alpha, jnp.where(is_lost, 0, beta))

    init = (zero_rows(num_steps, start), start)
    (Q, _), found = lax.scan(step, init, jnp.arange(num_steps, dtype=jnp.int32))
    return Q, found


def _over_probes(values: Float[Array, "probes ..."]) -> Estimate:
    """The mean over the leading axis, with a standard error for two probes or more."""
    k = values.shape[0]
    mean = jnp.mean(values, axis=0)
    error = jnp.std(values, axis=0, ddof=1) / k**0.5 if k > 1 else None
    return Estimate(mean, error)


def _over(tree: Params, length: Any) -> Params:
    return jax.tree.map(lambda a: a / jnp.asarray(length, a.dtype), tree)
