"""The linear solve of a derivative: cheap methods, in numbers."""

import functools

import jax
import jax.numpy as jnp
import lineax as lx
import pytest
from numpy.testing import assert_allclose

import optkit as ok

pytestmark = pytest.mark.x64


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

    exact = jax.value_and_grad(functools.partial(outer, solver=lx.Cholesky()))
    both = jax.jit(lambda t: jax.jvp(exact, (t,), (1.0,)))
    value, slope = both(0.0)
    assert_allclose(value, (1.4961727110582632, -0.3951711068514483), rtol=1e-13)
    assert_allclose(slope[1], 0.2829207413231073, rtol=1e-12)
    for solver, wrong in (
        (ok.OneStep(), -0.55269),
        (ok.Neumann(10, step_size=1 / 92), -0.05159),
    ):
        biased = jax.grad(functools.partial(outer, solver=solver))
        got = jax.jit(biased)(0.0)
        assert_allclose(got, wrong, atol=5e-6)
