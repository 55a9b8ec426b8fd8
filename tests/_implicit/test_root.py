"""Derivatives of solutions: five problems, every mode, every backward method."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import pytest
from numpy.testing import assert_allclose

import optkit as ok

# Two parameters, each problem with its solution as a function of them that JAX itself
# can differentiate, to any order: a closed form, or Newton's method unrolled.

X = jnp.array([[1.0, 0.2, -0.4], [0.3, -1.1, 0.5], [-0.7, 0.4, 1.2], [0.6, 0.9, 0.1]])
T = jnp.array([1.0, -0.5, 0.3, 0.8])
SIGNS = jnp.array([1.0, -1.0, 1.0, -1.0])
THETA = jnp.array([0.3, -0.4])


def per_feature(theta):
    return jnp.exp(jnp.array([1.0, 0.0, 0.5]) * theta[0] + theta[1])


class Ridge:
    """Least squares with a log-penalty for each feature."""

    def objective(w, theta):
        return 0.5 * jnp.sum((X @ w - T) ** 2) + 0.5 * jnp.vdot(
            per_feature(theta), w**2
        )

    def solution(theta):
        return jnp.linalg.solve(X.T @ X + jnp.diag(per_feature(theta)), X.T @ T)


class Logistic:
    """Logistic regression with a log-penalty for each feature."""

    def objective(w, theta):
        fit = jnp.sum(jax.nn.softplus(-SIGNS * (X @ w)))
        return fit + 0.5 * jnp.vdot(per_feature(theta), w**2)

    def solution(theta):
        w = jnp.array([-0.21703183, 0.33429774, 0.03969422])
        for _ in range(3):  # each doubles the digits, and the order that is exact
            p = jax.nn.sigmoid(-SIGNS * (X @ w))
            d = per_feature(theta)
            gradient = -X.T @ (SIGNS * p) + d * w
            w -= jnp.linalg.solve((X.T * (p * (1 - p))) @ X + jnp.diag(d), gradient)
        return w


class Lasso:
    """Proximal gradient: soft thresholding; the third weight is zero."""

    def mapping(w, theta):
        gradient = X.T @ (X @ w - T * theta[1])
        z = w - 0.4 * gradient
        return jnp.sign(z) * jnp.maximum(jnp.abs(z) - 0.4 * jnp.exp(theta[0]) / 4, 0)

    def solution(theta):
        kept = X[:, :2]
        target = kept.T @ T * theta[1] + jnp.exp(theta[0]) / 4
        w = jnp.linalg.solve(kept.T @ kept, target)
        return jnp.append(w, 0 * w[0])


class SvmDual:
    """Projected gradient on the box [0, C]: one dual is at C, one at 0."""

    LINEAR = jnp.array([0.3, 0.4, 2.0, -1.0])

    def kernel(theta):
        d = jnp.sum((X[:, None] - X) ** 2, axis=2)
        return SIGNS[:, None] * SIGNS * jnp.exp(-jnp.exp(theta[0]) * d)

    def mapping(a, theta):
        gradient = SvmDual.kernel(theta) @ a - SvmDual.LINEAR
        return jnp.clip(a - 0.5 * gradient, 0, jnp.exp(theta[1]))

    def solution(theta):
        K, c = SvmDual.kernel(theta), jnp.exp(theta[1])
        free = jnp.linalg.solve(K[:2, :2], SvmDual.LINEAR[:2] - K[:2, 2] * c)
        return jnp.stack([free[0], free[1], c, 0 * c])


class EqualityQp:
    """min ½ zᵀQz + cᵀz with Ez = d, by its KKT conditions."""

    Q = jnp.array([[2.0, 0.3], [0.3, 1.0]])

    def optimality(y, theta):
        z, nu = y["z"], y["nu"]
        stationary = EqualityQp.Q @ z * jnp.exp(theta[1]) + theta - nu
        return {"z": stationary, "nu": jnp.sum(z) - jnp.sin(theta[0])}

    def solution(theta):
        ones = jnp.ones((2, 1))
        top = jnp.concatenate([EqualityQp.Q * jnp.exp(theta[1]), -ones], axis=1)
        kkt = jnp.concatenate([top, jnp.array([[1.0, 1.0, 0.0]])])
        s = jnp.linalg.solve(kkt, jnp.append(-theta, jnp.sin(theta[0])))
        return {"z": s[:2], "nu": s[2]}


def fitted(problem, solver):
    """The problem's solution with our derivative, as a function of theta."""
    if hasattr(problem, "objective"):
        decorate = ok.implicit_minimum(problem.objective, solver=solver)
    elif hasattr(problem, "mapping"):
        decorate = ok.implicit_fixed_point(problem.mapping, solver=solver)
    else:
        decorate = ok.implicit_root(problem.optimality, solver=solver)
    solve = decorate(lambda y0, theta: problem.solution(theta))
    return functools.partial(solve, None)


def scalar(fit):
    """A loss of the solution, and a direction, keep the compiled graphs small."""

    def loss(theta):
        y = jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(fit(theta))])
        return jnp.vdot(jnp.arange(1.0, y.size + 1), jnp.sin(2 * y))

    return loss


def along(f, theta):
    return jax.jvp(f, (theta,), (jnp.array([1.0, -0.5]),))[1]


def first(fit, theta):
    loss = scalar(fit)
    return {"reverse": jax.grad(loss)(theta), "forward": along(loss, theta)}


def every(fit, theta):
    """Derivatives in every mode and nesting; under jit, vmap and scan."""
    grad = jax.grad(scalar(fit))
    hvp = functools.partial(along, grad)
    _, scanned = jax.lax.scan(lambda c, t: (c, grad(t)), 0, theta[None])
    return {
        **first(fit, theta),
        "fwd-rev": hvp(theta),
        "rev-rev": jax.grad(lambda t: grad(t)[0])(theta),
        "rev-fwd": jax.grad(functools.partial(along, scalar(fit)))(theta),
        "third": along(hvp, theta),
        "vmap": jax.vmap(grad)(jnp.stack([theta, theta + 0.01])),
        "scan": scanned,
    }


def assert_same(got, want, rtol=1e-8):
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=rtol, atol=rtol), got, want)


SMOOTH, GENERAL = [Ridge, Logistic], [Lasso, SvmDual, EqualityQp]


@functools.cache
def expected(problem, what):
    return jax.jit(functools.partial(what, problem.solution))(THETA)


@pytest.mark.parametrize("problem", SMOOTH + GENERAL, ids=lambda p: p.__name__)
def test_derivatives_are_exact_in_every_mode(problem):
    """Oracle: JAX's derivatives of the closed form, to 1e-8."""
    solver = lx.Cholesky() if problem in SMOOTH else lx.LU()
    fit = fitted(problem, solver)
    assert_same(jax.jit(functools.partial(every, fit))(THETA), expected(problem, every))


@pytest.mark.parametrize(
    ("problem", "solver"),
    [
        (Logistic, ok.CG(1e-12)),
        (Ridge, ok.Neumann(4000)),
        (Ridge, lx.CG(1e-12, 1e-12)),
        (Lasso, ok.GMRES(1e-12)),
        (SvmDual, ok.Neumann(4000)),
        (SvmDual, lx.BiCGStab(1e-12, 1e-12)),
        (EqualityQp, ok.GMRES(1e-12)),
        (EqualityQp, lx.Normal(ok.CG(1e-12))),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else type(x).__name__,
)
def test_every_backward_method_that_applies_is_exact_both_ways(problem, solver):
    """Oracle: JAX's Jacobian of the closed form, to 1e-8."""
    fit = fitted(problem, solver)
    assert_same(jax.jit(functools.partial(first, fit))(THETA), expected(problem, first))


@pytest.mark.parametrize("problem", [Logistic, Lasso], ids=lambda p: p.__name__)
def test_the_matrix_free_defaults_have_hessians(problem):
    """Oracle: JAX's Hessian of the closed form; the defaults at a small rtol."""
    solver = ok.CG(1e-12) if problem is Logistic else ok.GMRES(1e-12)
    fit = fitted(problem, solver)

    def second(fit, theta):
        return {"hessian": along(jax.grad(scalar(fit)), theta)}

    got = jax.jit(functools.partial(second, fit))(THETA)
    assert_same(got, expected(problem, second))


def test_ridge_in_numbers():
    """Oracle: the reference values of a hypergradient and its derivative."""
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    def solve(y0, theta):
        return jnp.linalg.solve(x.T @ x + jnp.exp(theta) * jnp.eye(2), x.sum(0))

    def ridge(w, theta):
        return 0.5 * jnp.sum((x @ w - 1) ** 2) + 0.5 * jnp.exp(theta) * jnp.sum(w**2)

    def outer(theta, solver):
        fit = ok.implicit_minimum(ridge, solver=solver)(solve)
        return 0.5 * jnp.sum((fit(None, theta) - jnp.array([1.0, -1.0])) ** 2)

    value, slope = jax.jvp(
        jax.value_and_grad(functools.partial(outer, solver=lx.Cholesky())),
        (0.0,),
        (1.0,),
    )
    assert_allclose(value, (1.4961727110582632, -0.3951711068514483), rtol=1e-13)
    assert_allclose(slope[1], 0.2829207413231073, rtol=1e-12)
    for solver, wrong in (
        (ok.OneStep(), -0.55269),
        (ok.Neumann(10, step_size=1 / 92), -0.05159),
    ):
        assert_allclose(jax.grad(outer)(0.0, solver), wrong, atol=5e-6)
