"""The default for Jacobians: right at any scale of equations and unknowns."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import FLOAT, X64, assert_allclose

import optkit as ok
from optkit._inverse.small import LUOrGMRES

EPS = float(jnp.finfo(FLOAT).eps)


def solve(A, b, transposed=False):
    operator = lx.MatrixLinearOperator(A)
    operator = operator.T if transposed else operator
    return lx.linear_solve(operator, b, LUOrGMRES(), throw=False)


@pytest.mark.parametrize("decades", [0, 3, 12])
def test_each_unknown_is_right_whatever_its_scale(key, decades):
    """Oracle: A = D M E and b = D M z for diagonal D, E, so that x = z / E."""
    M = jnp.eye(20) + 0.3 * jr.normal(key, (20, 20)) / 20**0.5
    z = 1 + jr.uniform(jr.key(1), (20,))
    D = 10.0 ** jr.uniform(jr.key(2), (20,), FLOAT, -decades, decades)
    E = 10.0 ** jr.uniform(jr.key(3), (20,), FLOAT, -decades, decades)
    for transposed in (False, True):
        A = (D[:, None] * M * E).T if transposed else D[:, None] * M * E
        b = D * np.asarray(np.float64(M) @ np.float64(z), FLOAT)
        solution = jax.jit(solve, static_argnums=2)(A, b, transposed)
        assert solution.stats["outcome"] == ok.RESULTS.successful
        assert_allclose(solution.value * E, z, rtol=200 * EPS, float32=200 * EPS)


def test_a_singular_system_is_solved_if_it_can_be_and_reported_otherwise(key):
    """Oracle: the pseudo-inverse of a graph's Laplacian, blind to a constant shift."""
    w = jr.uniform(key, (8, 8)) + 0.5
    L = jnp.diag((w + w.T).sum(0)) - w - w.T
    b = jr.normal(key, (8,))
    fine = solve(L, b - jnp.mean(b))
    assert fine.stats["outcome"] == ok.RESULTS.successful
    want = np.linalg.pinv(np.float64(L)) @ np.float64(b)
    assert_allclose(fine.value, want, rtol=1e-12, float32=1e-4)
    for off in (1.0, 3e-4, 10 * (1e-10 if X64 else 1e-5)):
        bad = solve(L, b - jnp.mean(b) + off * jnp.linalg.norm(b))
        assert bad.stats["outcome"] == ok.RESULTS.singular_matrix
    zeros = solve(jnp.zeros((2, 2)), jnp.ones(2))
    assert zeros.stats["outcome"] == ok.RESULTS.singular_matrix
    nan = solve(jnp.full((2, 2), jnp.nan), jnp.ones(2))
    assert nan.stats["outcome"] == ok.RESULTS.nonfinite_operator
    nothing = solve(jnp.eye(2), jnp.zeros(2))
    assert nothing.stats["outcome"] == ok.RESULTS.successful
    assert_allclose(nothing.value, 0, atol=0)


@pytest.mark.parametrize("n", [100, 101])
def test_large_systems_use_gmres(key, n):
    """Oracle: the dense solution, and the statistics of GMRES."""
    A, b = jnp.eye(n) + 0.3 * jr.normal(key, (n, n)) / n**0.5, jr.normal(key, (n,))
    solution = solve(A, b)
    assert ("num_steps" in solution.stats) is (n > 100)
    assert_allclose(solution.value, jnp.linalg.solve(A, b), rtol=1e-8, atol=1e-9)


@pytest.mark.x64
def test_mixed_dtypes_keep_theirs_and_narrow_ones_use_gmres():
    """Oracle: the closed form."""
    for narrow, rtol in ((jnp.float32, 1e-7), (jnp.bfloat16, 2**-7)):
        b = {"a": jnp.ones(2, narrow), "b": jnp.arange(3.0)}
        structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), b)
        double = lx.FunctionLinearOperator(
            lambda v: jax.tree.map(lambda a: 2 * a, v), structure
        )
        solution = lx.linear_solve(double, b, LUOrGMRES())
        assert ("num_steps" in solution.stats) is (narrow == jnp.bfloat16)
        got = jax.tree.map(lambda a: a.astype(float), solution.value)
        assert solution.value["a"].dtype == narrow
        assert_allclose(got["a"], 0.5, rtol=rtol)
        assert_allclose(got["b"], jnp.arange(3.0) / 2, rtol=rtol)
