"""GMRES: the true residual, scale, dtypes, failures."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import X64, assert_allclose

import optkit as ok


def contraction(key, n, dtype=float):
    """I - T for a T of spectral radius about 0.7, far from symmetric."""
    return (jnp.eye(n) - 0.7 * jr.normal(key, (n, n)) / n**0.5).astype(dtype)


RTOL = 1e-10 if X64 else 1e-5


@jax.jit
def solve(A, b):
    return lx.linear_solve(
        lx.MatrixLinearOperator(A), b, ok.GMRES(RTOL, restart=15), throw=False
    )


def test_the_true_residual_is_reached_and_reported_over_restarts(key):
    """Oracle: b - A x, at every scale of A and of b."""
    A, b = contraction(key, 40), jr.normal(key, (40,))
    smallest = 1e-30 if X64 else 1e-25  # of a normal x, too
    for scale_A, scale_b in ((1.0, 1.0), (1e-9, 1e15), (1e9, smallest)):
        solution = solve(scale_A * A, scale_b * b)
        r = scale_b * np.float64(b) - scale_A * np.float64(A) @ np.float64(
            solution.value
        )
        assert np.linalg.norm(r) <= (
            1.0001 if X64 else 1.05
        ) * RTOL * scale_b * np.linalg.norm(b)
        assert solution.stats["outcome"] == ok.RESULTS.successful
        assert 15 < solution.stats["num_steps"] < 60
        assert_allclose(
            solution.stats["residual"] * scale_b * np.linalg.norm(b),
            np.linalg.norm(r),
            rtol=1e-3,
            float32=5e-2,
        )


@pytest.mark.x64
def test_without_a_restart_it_is_exact_after_as_many_steps_as_coordinates(key):
    """Oracle: the dense solution at condition number 1e6, the worst for a restart."""
    u, v = (jnp.linalg.qr(jr.normal(k, (30, 30)))[0] for k in jr.split(key))
    A, b = (u * jnp.logspace(0, 6, 30)) @ v, jr.normal(key, (30,))
    solution = lx.linear_solve(lx.MatrixLinearOperator(A), b, ok.GMRES(1e-8))
    assert solution.stats["num_steps"] == 30
    assert_allclose(solution.value, jnp.linalg.solve(A, b), rtol=1e-6)
    stalled = solve(A, b)
    assert stalled.stats["outcome"] == ok.RESULTS.stalled
    assert stalled.stats["residual"] > 0.1


def test_a_singular_operator_is_reported_and_zeros_cost_nothing():
    """Oracle: [[1, 1], [1, 1]] does not reach (1, 2); a rotation by 90 degrees does."""
    ones = jnp.ones((2, 2))
    solution = solve(ones, jnp.array([1.0, 2.0]))
    assert solution.stats["outcome"] == ok.RESULTS.stalled
    assert "singular" in ok.RESULTS[solution.stats["outcome"]]
    solution = solve(ones, jnp.zeros(2))
    assert solution.stats["num_steps"] == 0
    assert_allclose(solution.value, 0, atol=0)
    rotation = jnp.array([[0.0, 1.0], [-1.0, 0.0]])
    assert_allclose(solve(rotation, jnp.array([1.0, 2.0])).value, [-2, 1], rtol=1e-14)
    nan = solve(jnp.full((2, 2), jnp.nan), jnp.ones(2))
    assert nan.stats["outcome"] == ok.RESULTS.nonfinite_operator


@pytest.mark.parametrize("off", [2e-4, 3e-3])
@pytest.mark.parametrize("restart", [None, 7])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_a_default_tolerance_does_not_hide_that_there_is_no_solution(
    key, off, restart, is_hidden
):
    """Oracle: b leaves the range of A, by less than the square root of eps."""
    n = 30
    values = jnp.linspace(0.0, 5.0, n).astype(jnp.float32)
    basis = jnp.linalg.qr(jr.normal(key, (n, n)))[0].astype(jnp.float32)
    A = basis * values @ basis.T if is_hidden else jnp.diag(values)
    null = np.asarray(basis[:, 0] if is_hidden else jnp.eye(n)[0])
    b = np.asarray(A) @ np.asarray(jr.normal(jr.key(1), (n,), jnp.float32))
    b = jnp.asarray(b / np.linalg.norm(b) + off * null, jnp.float32)
    operator = lx.MatrixLinearOperator(A)
    solution = lx.linear_solve(operator, b, ok.GMRES(restart=restart), throw=False)
    assert solution.stats["outcome"] in (
        ok.RESULTS.stalled,
        ok.RESULTS.max_steps_reached,
    )
    r = np.float64(b) - np.float64(A) @ np.float64(solution.value)
    assert np.linalg.norm(r) <= np.linalg.norm(b)  # no worse than x = 0


@pytest.mark.parametrize("condition", [1e3, 1e4])
def test_what_rounding_leaves_will_do_unless_a_tolerance_is_asked_for(key, condition):
    """Oracle: the float64 solution; hardly further off than a dense float32 factor."""
    u, v = (jnp.linalg.qr(jr.normal(k, (30, 30)))[0] for k in jr.split(key))
    A = ((u * jnp.logspace(0, jnp.log10(condition), 30)) @ v).astype(jnp.float32)
    bs = jr.normal(key, (20, 30), jnp.float32)
    exact = np.linalg.solve(np.asarray(A, np.float64), np.asarray(bs, np.float64).T).T

    def errors(x):
        off = np.asarray(x, np.float64) - exact
        return np.linalg.norm(off, axis=1) / np.linalg.norm(exact, axis=1)

    def found(method):
        def one(b):
            operator = lx.MatrixLinearOperator(A)
            solution = lx.linear_solve(operator, b, method, throw=False)
            return solution.value, solution.stats

        value, stats = jax.vmap(one)(bs)
        return value, stats["residual"], stats["outcome"] == ok.RESULTS.successful

    value, residual, is_success = found(ok.GMRES())
    assert np.all(is_success)
    assert np.all(residual <= np.finfo(np.float32).eps ** 0.5)
    dense = jnp.linalg.solve(A, bs.T).T
    assert np.median(errors(value)) < 4 * np.median(errors(dense))
    _, residual, is_success = found(ok.GMRES(1e-5))
    assert np.array_equal(is_success, residual <= 1e-5)
    assert not np.all(is_success)


def test_mixed_dtypes_keep_theirs_and_transposes_are_solved(key):
    """Oracle: the dense solution, in the precision of the narrowest leaf."""
    A = contraction(key, 5)
    b = {"a": jnp.ones(2, jnp.float32), "b": jnp.arange(3.0)}

    def product(v):
        flat = A @ jnp.concatenate([v["a"].astype(float), v["b"]])
        return {"a": flat[:2].astype(jnp.float32), "b": flat[2:]}

    structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), b)
    operator = lx.FunctionLinearOperator(product, structure)
    for op, matrix in ((operator, A), (operator.T, A.T)):
        x = lx.linear_solve(op, b, ok.GMRES(1e-6)).value
        assert x["a"].dtype == jnp.float32
        got = jnp.concatenate([x["a"].astype(float), x["b"]])
        want = jnp.linalg.solve(matrix, jnp.array([1.0, 1, 0, 1, 2]))
        assert_allclose(got, want, rtol=1e-5)


def test_bad_arguments_say_what_to_do():
    """Oracle: the messages."""
    with pytest.raises(ValueError, match="restart >= 1"):
        ok.GMRES(restart=0)
    tall = lx.MatrixLinearOperator(jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"lx\.LSMR"):
        lx.linear_solve(tall, jnp.ones(3), ok.GMRES())
    square = lx.MatrixLinearOperator(jnp.eye(2))
    with pytest.raises(ValueError, match=r"`ok.GMRES` takes the options .*\['x0'\]"):
        lx.linear_solve(square, jnp.ones(2), ok.GMRES(), options={"x0": jnp.ones(2)})
