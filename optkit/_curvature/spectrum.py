"""The spectrum of a curvature, from products alone: stochastic Lanczos quadrature.

Lanczos' method turns s products, from a start z, into a small tridiagonal matrix T.
Its eigenvalues θ and the squared first entries w of its eigenvectors are the nodes and
weights of a Gauss quadrature:

    Σ_j w_j f(θ_j)  =  zᵀ f(C) z        exactly, for polynomials f of degree < 2s

For random signs over √n, the right-hand side has mean tr f(C)/n: the mean of f over the
eigenvalues. Vectors are pytrees like the params, so sharded leaves stay where they are.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
from jax import lax
from jaxtyping import Array, Float

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
)
from .estimate import Estimate


class Spectrum(eqx.Module):
    """The eigenvalues of a curvature, as far as k probes of s products show them.

    `ok.spectrum` makes it. Each row of `nodes`, ascending, with its `weights`, which
    sum to one, is one probe's guess of how the n = `size` eigenvalues are spread.
    Within `errors` of a node lies an eigenvalue, up to rounding: that of the largest
    settles first. A node of weight w stands for about n w eigenvalues.
    """

    nodes: Float[Array, "k s"]
    weights: Float[Array, "k s"]
    errors: Float[Array, "k s"]
    size: int = eqx.field(static=True)

    def mean(self, fn: Callable[[Array], Array]) -> Estimate:
        """Estimates the mean of a function over the n eigenvalues, tr f(C)/n.

        `spectrum.size * spectrum.mean(lambda x: x / (x + damping)).mean` is the
        effective dimension, and `spectrum.mean(lambda x: x < 0)` the fraction of the
        eigenvalues that are negative.

        Args:
            fn: from an array to one of its shape, entry by entry.

        Returns:
            An `ok.Estimate` of a scalar; the standard error is over the probes, and
            does not see the error of the quadrature, which falls with the products.
        """
        values = jnp.asarray(fn(self.nodes), self.weights.dtype)
        terms = jnp.where(self.weights == 0, 0, self.weights * values)
        return _over_probes(jnp.sum(terms, axis=1))

    def density(self, at: Float[Array, " g"], width: Any) -> Estimate:
        """Estimates the density of the eigenvalues, smoothed by a Gaussian.

        Args:
            at: where.
            width: the standard deviation of the Gaussian.

        Returns:
            An `ok.Estimate` of arrays like `at`; the density integrates to one.
        """
        dtype = self.nodes.dtype
        at, width = jnp.asarray(at, dtype), jnp.asarray(width, dtype)
        offsets = (at[:, None, None] - self.nodes) / width
        heights = jax.scipy.stats.norm.pdf(offsets) / width
        return _over_probes(jnp.sum(self.weights * heights, axis=2).T)


def spectrum(
    operator: lx.AbstractLinearOperator, *, key: Array, num_probes: int, num_steps: int
) -> Spectrum:
    """Estimates the eigenvalues of a symmetric operator, and how many are where.

    The ends of the spectrum are found to many digits: `spectrum.nodes[:, -1]`. What is
    dense inside is smeared over few nodes. Where fewer than s eigenvalues differ, all
    are found, and the method goes on from a new random vector.

    Takes k s products one after the other, and holds s vectors like the params, in
    float32 or wider: each new one is made orthogonal to all before, twice.

    Args:
        operator: any symmetric Lineax operator, such as `ok.hessian(...)`.
        key: a random key, consumed.
        num_probes: k >= 1, starts; the standard errors fall as 1/√k.
        num_steps: s, products for each, at most the number of params.

    Returns:
        An `ok.Spectrum`; `ok.plot.spectrum` draws it. Not finite where products are
        not.

    Raises:
        ValueError: for numbers below 1, more steps than params, or an operator not
            known to be symmetric.
        TypeError: for something else than a real Lineax operator, or one random key.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**3), jnp.array([0.5, 1.0, 2.0]))
        >>> s = ok.spectrum(C, key=jax.random.key(0), num_probes=2, num_steps=3)
        >>> print(s.nodes[0].round(4), s.mean(jnp.square).mean.round(4))
        [ 3.  6. 12.] 63.0

    Reference:
        Golub and Meurant 1994, Matrices, moments and quadrature; Ubaru, Chen and Saad
        2017, Fast estimation of tr f(A) via stochastic Lanczos quadrature. Departs:
        (1) starts anew where the Krylov space is exhausted.
    """
    check = Check("ok.spectrum")
    check.symmetric(operator)
    check.key(key)
    check.count(num_probes=num_probes, num_steps=num_steps)
    size = operator.in_size()
    check.at_most(size, "the number of params", num_steps=num_steps)
    linear = lx.linearise(operator)

    def one(key: Array) -> tuple[Array, Array, Array]:
        key, probe_key = jr.split(key)
        z = widen(signs(probe_key, operator.in_structure()))
        alpha, beta = tridiagonalise(linear, _over(z, size**0.5), key, num_steps)
        matrix = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
        nodes, vectors = jnp.linalg.eigh(matrix)
        return nodes, vectors[0] ** 2, jnp.abs(beta[-1] * vectors[-1])

    nodes, weights, errors = lax.map(one, jr.split(key, num_probes))
    return Spectrum(nodes, weights, errors, size)


def tridiagonalise(
    operator: lx.AbstractLinearOperator, start: Params, key: Array, num_steps: int
) -> tuple[Float[Array, " s"], Float[Array, " s"]]:
    """Lanczos' method, with full orthogonalisation.

    With q_0 the start, and Q the rows q_0, ..., q_j:

        w = C q_j    α_j = q_jᵀw    w ← w - QᵀQw, twice    β_j = |w|    q_{j+1} = w/β_j

    Args:
        operator: C.
        start: of norm one, in float32 or wider.
        key: a random key, consumed where w vanishes: then β_j = 0, and q_{j+1} is
            random.
        num_steps: s.

    Returns:
        α, and β, whose last entry is the norm of what is left of C q_{s-1}.
    """
    dtype, structure = common_dtype(start), operator.in_structure()

    def product(q: Params) -> Params:
        return widen(operator.mv(cast_like(q, structure)))

    def orthogonal(w: Params, rows: Params) -> Params:
        for _ in range(2):  # once leaves what cancellation has left
            known = combine(project(rows, w), rows)
            w = subtract(w, known)
        return w

    def step(carry: Any, j: Array) -> tuple[Any, tuple[Array, Array]]:
        rows, q = carry
        rows = jax.tree.map(lambda u, a: u.at[j].set(a), rows, q)
        w = product(q)
        alpha, length = dot(q, w), norm(w)
        w = orthogonal(w, rows)
        beta = norm(w)
        # Below this, w is rounding error, whose direction is anything but orthogonal.
        is_lost = beta <= 10 * jnp.finfo(dtype).eps * length

        def anew() -> Params:
            # Not signs: of few entries, these often lie in the span of others.
            z = orthogonal(normals(jr.fold_in(key, j), q), rows)
            return _over(z, norm(z))

        q = lax.cond(is_lost, anew, lambda: _over(w, jnp.where(is_lost, 1, beta)))
        return (rows, q), (alpha, jnp.where(is_lost, 0, beta))

    def empty(a: Array) -> Array:
        return jnp.broadcast_to(jnp.zeros_like(a), (num_steps, *a.shape))

    init = (jax.tree.map(empty, start), start)
    return lax.scan(step, init, jnp.arange(num_steps, dtype=jnp.int32))[1]


def _over_probes(values: Float[Array, "probes ..."]) -> Estimate:
    """The mean over the leading axis, with its standard error where there is one."""
    k = values.shape[0]
    mean = jnp.mean(values, axis=0)
    error = jnp.std(values, axis=0, ddof=1) / k**0.5 if k > 1 else None
    return Estimate(mean, error)


def _over(tree: Params, length: Any) -> Params:
    return jax.tree.map(lambda a: a / jnp.asarray(length, a.dtype), tree)
