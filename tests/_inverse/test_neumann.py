"""The Neumann series."""

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok


def diagonal(*values):
    return lx.DiagonalLinearOperator(jnp.array(values))


@pytest.mark.parametrize("num_terms", [1, 2, 7])
def test_k_terms_are_k_steps_of_gradient_descent(key, num_terms):
    """Oracle: NumPy gradient descent on ½ xᵀAx - bᵀx from zero."""
    m = jr.normal(key, (5, 5))
    A, b, alpha = np.asarray(m @ m.T), np.asarray(jr.normal(key, (5,))), 0.05
    x = np.zeros(5)
    for _ in range(num_terms):
        x = x - alpha * (A @ x - b)
    C = lx.MatrixLinearOperator(m @ m.T, lx.positive_semidefinite_tag)
    solution = ok.invert(C, ok.Neumann(num_terms, alpha)).solve(jnp.asarray(b))
    assert_allclose(solution.value, x, rtol=1e-12)
    residual = np.linalg.norm(b - A @ x) / np.linalg.norm(b)
    assert_allclose(solution.stats["residual"], residual, rtol=1e-10)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("n", [1, 2, 500])
def test_the_estimated_step_size_is_close_to_and_safely_below_one_over_lambda_max(
    key, n, scale
):
    """Oracle: the largest eigenvalue; below 2/λ_max for sure, near 1/λ_max."""
    values = jnp.linspace(0.0, 3.0, n + 1)[1:].astype(jnp.float32)
    C = lx.DiagonalLinearOperator(values * jnp.float32(scale))
    solution = ok.invert(C, ok.Neumann(3)).solve(jnp.ones(n, jnp.float32))
    assert solution.result == ok.RESULTS.successful
    ratio = solution.stats["step_size"] * scale * 3.0
    assert 0.7 < ratio < 1.05


@pytest.mark.parametrize("entries", [(2, 1), (2, -1), (2, 1, 1), (2, -1, 0, -1)])
def test_eigenvectors_of_signs_do_not_hide_the_largest_eigenvalue(entries):
    """Oracle: NumPy's; of circulant matrices, with signs for eigenvectors."""
    n = len(entries)
    A = np.array([np.roll(entries, i) for i in range(n)], float)
    C = lx.MatrixLinearOperator(jnp.asarray(A), lx.symmetric_tag)
    solution = ok.invert(C, ok.Neumann(200), damping=0.1).solve(jnp.ones(n))
    assert solution.result == ok.RESULTS.successful
    largest = np.linalg.eigvalsh(A)[-1] + 0.1
    assert_allclose(solution.stats["step_size"], 1 / largest, rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_step_that_is_too_long_is_reported_in_few_digits(dtype):
    """Oracle: 2/λ_max = 0.99; one step changes a norm by less than rounding."""
    C = ok.LowRank(jnp.diag(jnp.sqrt(jnp.array([2.02, 0.5]))).astype(dtype))
    solution = ok.invert(C, ok.Neumann(100, 1.0)).solve(jnp.ones(2, dtype))
    assert solution.result == ok.RESULTS.diverging


def test_a_step_that_is_too_long_is_reported(key):
    """Oracle: 2/λ_max = 0.5."""
    C, b = diagonal(1.0, 4.0), jnp.ones(2)
    for step, result in [
        (0.49, ok.RESULTS.successful),
        (0.6, ok.RESULTS.diverging),
        (1e30, ok.RESULTS.diverging),
    ]:
        solution = ok.invert(C, ok.Neumann(100, step)).solve(b)
        assert solution.result == result
    with pytest.raises(RuntimeError, match="Lower `step_size`"):
        ok.invert(C, ok.Neumann(30, 1.0)).mv(b)


@pytest.mark.parametrize("num_terms", [20, 30, 50, 60])
def test_a_norm_that_overflows_is_no_success(num_terms):
    """Oracle: |1 - 1.0 * 6.1| > 1; in float32 the square of a term overflows first."""
    C = ok.LowRank(jnp.ones((2, 3), jnp.float32))
    P = ok.invert(C, ok.Neumann(num_terms, step_size=1.0), damping=0.1)
    solution = P.solve(jnp.ones(3, jnp.float32))
    assert solution.result == ok.RESULTS.diverging


def test_negative_curvature_is_reported_and_damping_mends_it():
    C, b = diagonal(1.0, -0.5), jnp.array([1.0, 1.0])
    assert ok.invert(C, ok.Neumann(9)).solve(b).result == ok.RESULTS.indefinite
    given = ok.invert(C, ok.Neumann(9, 0.5)).solve(b)
    assert given.result == ok.RESULTS.diverging
    P = ok.invert(C, ok.Neumann(200), damping=1.0)
    assert_allclose(P.mv(b), [0.5, 2.0], rtol=1e-12)


def test_convergence_within_rounding_is_no_divergence():
    """Oracle: the solution; terms that have reached rounding do not grow."""
    for dtype in (jnp.float32, float):
        C = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, 3.0], dtype))
        solution = ok.invert(C, ok.Neumann(500)).solve(jnp.ones(3, dtype))
        assert solution.result == ok.RESULTS.successful
        assert_allclose(solution.value, 1 / C.diagonal, rtol=1e-6)


def test_a_zero_operator_has_no_step_size():
    C = diagonal(0.0, 0.0)
    solution = ok.invert(C, ok.Neumann(3)).solve(jnp.ones(2))
    assert_allclose(solution.stats["residual"], 1.0)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="num_terms >= 1"):
        ok.Neumann(0)
    with pytest.raises(ValueError, match="step_size > 0"):
        ok.Neumann(3, step_size=-1.0)
    with pytest.raises(ValueError, match="symmetric"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(2)), jnp.ones(2), ok.Neumann(3))
