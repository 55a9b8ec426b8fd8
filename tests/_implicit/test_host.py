"""SciPy under jit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from precision import X64, assert_allclose

import optkit as ok


def rosenbrock(y, a):
    return (a - y[0]) ** 2 + 10.0 * (y[1] - y[0] ** 2) ** 2


@ok.implicit_minimum(rosenbrock, solver=ok.CG(1e-10 if X64 else 1e-4))
@ok.host_solver
def fit(y0, a):
    assert isinstance(y0, np.ndarray)
    assert y0.dtype == a.dtype == np.float64
    return scipy.optimize.minimize(rosenbrock, y0, (a,), tol=1e-10).x


def test_scipy_runs_and_is_differentiated_under_jit_and_vmap():
    """Oracle: the minimum is (a, a²)."""
    jacobian = jax.jit(jax.vmap(jax.jacrev(fit, argnums=1), (None, 0)))
    got = jacobian(jnp.zeros(2), jnp.array([0.5, 1.5]))
    assert_allclose(got, [[1, 1], [1, 3]], rtol=1e-5, float32=1e-3)


def test_scipy_finds_the_minimum_from_arrays_in_float32():
    """Oracle: (a, a²). With finite differences in float32, SciPy returns y0."""
    y0, a = jnp.zeros(2, jnp.float32), jnp.float32(0.5)
    got = jax.jit(fit)(y0, a)
    assert got.dtype == jnp.float32
    assert_allclose(got, [0.5, 0.25], rtol=1e-4)


def test_a_wrong_result_says_what_to_return():
    """Oracle: the messages."""
    pair = ok.host_solver(lambda y0, a: (y0, 3))
    with pytest.raises(Exception, match="structure of y0"):
        jax.block_until_ready(pair(jnp.zeros(2), 1.0))
    flat = ok.host_solver(lambda y0, a: y0.ravel())
    with pytest.raises(Exception, match="shapes of y0"):
        jax.block_until_ready(flat(jnp.zeros((2, 2)), 1.0))
