"""CG and GMRES where Lineax' own are used: options, tags, complex numbers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import X64, assert_allclose

import optkit as ok

KEY = jr.key(5)
PSD, NSD = lx.positive_semidefinite_tag, lx.negative_semidefinite_tag
B = jr.normal(KEY, (30,))
VALUES = jnp.logspace(0, 3, 30)
Q = jnp.linalg.qr(jr.normal(jr.key(6), (30, 30)))[0]
POSITIVE = lx.MatrixLinearOperator((Q * VALUES) @ Q.T, PSD)
SKEW = lx.MatrixLinearOperator(
    (Q * VALUES) @ Q.T + 30 * jnp.eye(30, k=1) - 30 * jnp.eye(30, k=-1)
)
LEAST = 1e-12 if X64 else 1e-6
PAIRS = [(POSITIVE, ok.CG(LEAST)), (POSITIVE, ok.GMRES(LEAST)), (SKEW, ok.GMRES(LEAST))]
pairs = pytest.mark.parametrize(("A", "method"), PAIRS, ids=["CG", "GMRES", "skew"])


def solve(A, method, b=B, **options):
    return lx.linear_solve(A, b, method, options=options, throw=False)


@pairs
def test_a_starting_point_saves_steps_and_changes_nothing_else(A, method):
    """Oracle: the dense solution, and the steps from zero."""
    exact = jnp.linalg.solve(A.as_matrix(), B)
    plain = solve(A, method)
    near = solve(A, method, y0=exact * (1 + 1e-4 * jr.normal(KEY, (30,))))
    there = solve(A, method, y0=plain.value)
    for solution in (plain, near, there):
        assert solution.stats["outcome"] == ok.RESULTS.successful
        assert_allclose(solution.value, exact, rtol=1e-8, float32=5e-3)
        assert solution.stats["residual"] <= LEAST
    steps = [int(s.stats["num_steps"]) for s in (plain, near, there)]
    assert steps[1] <= steps[0]
    assert steps[2] == 0
    small = solve(A, method, B * 1e-20, y0=exact * 1e-20)
    assert small.stats["num_steps"] < steps[0]
    assert_allclose(small.value * 1e20, exact, rtol=1e-8, float32=5e-3)


@pairs
def test_a_preconditioner_saves_steps_and_changes_nothing_else(A, method):
    """Oracle: the dense solution of both systems; M is nearly the inverse."""
    matrix = A.as_matrix()
    M = jnp.linalg.inv(matrix + 0.01 * jnp.eye(30))
    M = lx.MatrixLinearOperator(M, PSD) if A is POSITIVE else lx.MatrixLinearOperator(M)
    plain, fast = solve(A, method), solve(A, method, preconditioner=M)
    assert 3 * fast.stats["num_steps"] < plain.stats["num_steps"]
    exact = jnp.linalg.solve(matrix, B)
    assert_allclose(fast.value, exact, rtol=1e-8, float32=5e-3)

    def reverse(b):
        solution = lx.linear_solve(A, b, method, options={"preconditioner": M})
        return jnp.vdot(B, solution.value)

    got = jax.jit(jax.grad(reverse))(B)
    want = jnp.linalg.solve(matrix.T, B)
    assert_allclose(got, want, rtol=1e-8, atol=1e-10, float32=5e-3)


def test_options_that_do_not_fit_are_refused():
    """Oracle: the messages."""
    three = lx.MatrixLinearOperator(jnp.eye(3), PSD)
    for method in (ok.CG(), ok.GMRES()):
        name = type(method).__name__
        with pytest.raises(ValueError, match=rf"`ok.{name}` takes the opt.*'yo'"):
            solve(POSITIVE, method, yo=B)
        with pytest.raises(ValueError, match=rf"`ok.{name}` needs y0 in the shape"):
            solve(POSITIVE, method, y0=B[:3])
        with pytest.raises(ValueError, match=rf"`ok.{name}` needs the precondit"):
            solve(POSITIVE, method, preconditioner=three)


def test_cg_negates_an_operator_that_is_tagged_negative_semidefinite():
    """Oracle: the dense solution, its derivative, and a wrong tag."""
    A = lx.MatrixLinearOperator(-POSITIVE.as_matrix(), NSD)
    exact = jnp.linalg.solve(A.as_matrix(), B)
    solution = solve(A, ok.CG(LEAST))
    assert solution.stats["outcome"] == ok.RESULTS.successful
    assert_allclose(solution.value, exact, rtol=1e-8, float32=5e-3)
    started = solve(A, ok.CG(LEAST), y0=0.9 * exact)
    assert_allclose(started.value, exact, rtol=1e-8, float32=5e-3)
    got = jax.grad(lambda b: jnp.sum(solve(A, ok.CG(LEAST), b).value))(B)
    want = jnp.linalg.solve(A.as_matrix(), jnp.ones(30))
    assert_allclose(got, want, rtol=1e-8, atol=1e-10, float32=5e-3)
    matrix, shape = A.as_matrix(), jax.ShapeDtypeStruct(B.shape, B.dtype)
    product = lx.FunctionLinearOperator(lambda v: matrix @ v, shape, NSD)
    assert_allclose(solve(product, ok.CG(LEAST)).value, solution.value, rtol=1e-6)
    wrong = lx.MatrixLinearOperator(POSITIVE.as_matrix(), NSD)
    assert solve(wrong, ok.CG()).stats["outcome"] == ok.RESULTS.indefinite


@pytest.mark.parametrize("method", [ok.CG(LEAST), ok.GMRES(LEAST)], ids=["CG", "GMRES"])
def test_complex_systems_are_refused_with_the_real_form_that_works(method):
    """Oracle: NumPy's complex solution of a Hermitian system."""
    a, c = jr.normal(KEY, (6, 6)), jr.normal(jr.key(6), (6, 6))
    A = jax.lax.complex(a, c)
    A = A @ A.conj().T + jnp.eye(6, dtype=A.dtype)
    b = jax.lax.complex(B[:6], B[6:12])
    with pytest.raises(TypeError, match=r"needs real leaves, got complex.*pair"):
        lx.linear_solve(lx.MatrixLinearOperator(A, PSD), b, method)

    def product(pair):
        q = A @ jax.lax.complex(*pair)
        return q.real, q.imag

    like = jax.ShapeDtypeStruct((6,), B.dtype)
    real = lx.FunctionLinearOperator(product, (like, like), PSD)
    u, v = lx.linear_solve(real, (b.real, b.imag), method).value
    want = np.linalg.solve(np.asarray(A), np.asarray(b))
    assert_allclose(u, want.real, rtol=1e-9, atol=1e-10, float32=1e-4)
    assert_allclose(v, want.imag, rtol=1e-9, atol=1e-10, float32=1e-4)
