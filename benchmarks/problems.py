"""The simulated quadratic problem of published bilevel benchmarks.

Both levels are means of n quadratics of rank one, drawn as in those benchmarks:

    ½ (aᵀy)² + ½ (bᵀx)² + (uᵀx)(wᵀy) + pᵀy + qᵀx

E aaᵀ has the spectrum [μ, L], E bbᵀ the same but for one eigenvalue of zero, and E uwᵀ
has singular values in [μ, L_cross]. The examples are held as vectors, which takes 100
times less memory than the n matrices of those benchmarks. The measure of success is
‖∇Φ(x)‖² over all examples, in closed form.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, Key


class Quadratics(NamedTuple):
    """The vectors of n quadratics, one per row."""

    a: Float[Array, "n dy"]
    b: Float[Array, "n dx"]
    u: Float[Array, "n dx"]
    w: Float[Array, "n dy"]
    p: Float[Array, "n dy"]
    q: Float[Array, "n dx"]

    def mean(self, x: Array, y: Array) -> Float[Array, ""]:
        """The objective of a level."""
        squares = 0.5 * (self.a @ y) ** 2 + 0.5 * (self.b @ x) ** 2
        return jnp.mean(squares + (self.u @ x) * (self.w @ y) + self.p @ y + self.q @ x)


class Matrices(NamedTuple):
    """The same quadratics with the matrices aaᵀ, bbᵀ and uwᵀ."""

    aa: Float[Array, "n dy dy"]
    bb: Float[Array, "n dx dx"]
    uw: Float[Array, "n dx dy"]
    p: Float[Array, "n dy"]
    q: Float[Array, "n dx"]

    def mean(self, x: Array, y: Array) -> Float[Array, ""]:
        """The objective of a level."""

        def one(each: Matrices) -> Array:
            squares = 0.5 * y @ (each.aa @ y) + 0.5 * x @ (each.bb @ x)
            return squares + x @ each.uw @ y + each.p @ y + each.q @ x

        return jnp.mean(jax.vmap(one)(self))


class Problem(NamedTuple):
    """The examples of both levels."""

    upper: Any  # `Quadratics` or `Matrices`
    lower: Any


def in_matrices(problem: Problem) -> Problem:
    """The problem with matrices, as in the published benchmarks."""

    def level(rows: Quadratics) -> Matrices:
        outer = jax.vmap(jnp.outer)
        squares = outer(rows.a, rows.a), outer(rows.b, rows.b)
        return Matrices(*squares, outer(rows.u, rows.w), rows.p, rows.q)

    return Problem(level(problem.upper), level(problem.lower))


def rows(examples: Any, index: Int[Array, " b"]) -> Any:
    """The examples at some indices."""
    return jax.tree.map(lambda a: a[index], examples)


def simulated(
    *,
    key: Key[Array, ""],
    num: int = 1024,
    dim_x: int = 100,
    dim_y: int = 100,
    mu: float = 0.1,
    cross: float = 0.1,
) -> Problem:
    """Draws both levels, with L = 1."""
    upper, lower = jr.split(key)
    sizes = num, dim_x, dim_y, mu, cross
    return Problem(_draw(upper, *sizes), _draw(lower, *sizes))


def hypergradient(problem: Problem, x: Float[Array, " dx"]) -> Float[Array, " dx"]:
    """∇Φ(x) in closed form, with y*(x) by a dense solve."""
    g, f = problem.lower, problem.upper
    n, m = len(g.a), len(f.a)
    H, J = g.a.T @ g.a / n, g.u.T @ g.w / n
    y = -jnp.linalg.solve(H, J.T @ x + jnp.mean(g.p, 0))
    F_y = f.a.T @ (f.a @ y) / m + f.w.T @ (f.u @ x) / m + jnp.mean(f.p, 0)
    F_x = f.b.T @ (f.b @ x) / m + f.u.T @ (f.w @ y) / m + jnp.mean(f.q, 0)
    return F_x - J @ jnp.linalg.solve(H, F_y)


def value_curvature(problem: Problem) -> Float[Array, " dx"]:
    """The eigenvalues of ∇²Φ: a minimum exists where all are positive."""
    dim_x = problem.upper.b.shape[1]
    columns = jax.vmap(lambda x: hypergradient(problem, x))(jnp.eye(dim_x))
    origin = hypergradient(problem, jnp.zeros(dim_x))
    return jnp.linalg.eigvalsh(columns - origin[None])


def _draw(
    key: Key[Array, ""], n: int, dim_x: int, dim_y: int, mu: float, cross: float
) -> Quadratics:
    keys = jr.split(key, 9)
    root_y = jnp.logspace(jnp.log10(mu) / 2, 0.0, dim_y)
    root_x = jnp.r_[0.0, jnp.logspace(jnp.log10(mu) / 2, 0.0, dim_x - 1)]
    basis_y = _orthogonal(keys[0], dim_y)
    basis_x = _orthogonal(keys[1], dim_x)
    a = jr.normal(keys[2], (n, dim_y)) @ (basis_y * root_y[None]) @ basis_y.T
    b = jr.normal(keys[3], (n, dim_x)) @ (basis_x * root_x[None]) @ basis_x.T
    # u = U D ξ and w = V ξ, so E u wᵀ = U D Vᵀ.
    k = min(dim_x, dim_y)
    D = jnp.zeros((dim_x, dim_y))
    D = D.at[:k, :k].set(jnp.diag(jnp.logspace(jnp.log10(mu), jnp.log10(cross), k)))
    xi = jr.normal(keys[4], (n, dim_y))
    u = xi @ (_orthogonal(keys[5], dim_x) @ D).T
    w = xi @ _orthogonal(keys[8], dim_y).T
    p = jr.normal(keys[6], (n, dim_y))
    q = jr.normal(keys[7], (n, dim_x))
    return Quadratics(a, b, u, w, p, q)


def _orthogonal(key: Key[Array, ""], dim: int) -> Float[Array, "dim dim"]:
    return jnp.linalg.qr(jr.normal(key, (dim, dim)))[0]
