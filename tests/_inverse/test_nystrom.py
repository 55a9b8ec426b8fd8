"""The randomised Nyström approximation."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from precision import FLOAT, assert_allclose

import optkit as ok


def decaying(key, n=60, rate=0.7, dtype=float):
    """A matrix with eigenvalues rate^i."""
    q, _ = jnp.linalg.qr(jr.normal(key, (n, n)))
    values = rate ** jnp.arange(1.0 * n)
    matrix = ((q * values) @ q.T).astype(dtype)
    return lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag), values


def test_it_is_exact_at_the_rank_of_the_curvature(key):
    """Oracle: the dense inverse, of a pytree of rank 4 < r < n."""
    k1, k2 = jr.split(key)
    rows = {"a": jr.normal(k1, (4, 3, 2)), "b": jr.normal(k2, (4, 5))}
    C = ok.LowRank(rows)
    P = ok.invert(C, ok.Nystrom(7, key=key), damping=0.1)
    want = np.linalg.inv(C.as_matrix() + 0.1 * np.eye(11))
    assert_allclose(P.as_matrix(), want, rtol=1e-9, atol=1e-10)
    assert_allclose(ravel_pytree(P.diagonal())[0], np.diagonal(want), rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, FLOAT])
def test_the_error_is_of_the_order_of_the_first_eigenvalue_left_out(key, dtype):
    """Oracle: the bound of Frangella, Tropp and Udell, proposition 2.2, p = r/2."""
    C, values = decaying(key, dtype=dtype)
    P = ok.invert(C, ok.Nystrom(20, key=key), damping=1e-3)
    U, found = P.factor.vectors, P.factor.values
    assert_allclose(U @ U.T, np.eye(20), atol=2e3 * jnp.finfo(dtype).eps)
    error = np.linalg.norm(C.matrix - (U.T * found.astype(dtype)) @ U, 2)
    p = 10
    tail = values[p:].sum()
    bound = (1 + 2 * (p - 1) / 9) * values[p] + 2 * np.e**2 * 20 / 99 * tail
    assert error < float(bound)
    assert_allclose(found[::-1][:8], values[:8], rtol=2e-2)


def test_the_inverse_is_that_of_the_approximation_plus_damping(key):
    """Oracle: the dense inverse of UᵀΛU + λI."""
    C, _ = decaying(key)
    P = ok.invert(C, ok.Nystrom(9, key=key), damping=1e-2)
    U, values = P.factor.vectors, P.factor.values
    want = np.linalg.inv((U.T * values) @ U + 1e-2 * np.eye(60))
    assert_allclose(P.as_matrix(), want, rtol=1e-9, atol=1e-8)
    assert_allclose(P.diagonal(), np.diagonal(want), rtol=1e-9)
    assert_allclose(P.entry(3, jnp.arange(60)), want[3], rtol=1e-9, atol=1e-8)


def test_the_preconditioner_equals_its_formula(key):
    """Oracle: the formula with a dense U."""
    C, _ = decaying(key)
    P = ok.invert(C, ok.Nystrom(9, key=key), damping=1e-2)
    U, values = P.factor.vectors, P.factor.values + 1e-2
    M = ok.nystrom_preconditioner(P)
    want = values[0] * (U.T / values) @ U + np.eye(60) - U.T @ U
    assert_allclose(M.as_matrix(), want, rtol=1e-10, atol=1e-12)
    assert_allclose(M.diagonal(), np.diagonal(want), rtol=1e-10)
    condition = np.linalg.cond(M.as_matrix() @ (C.matrix + 1e-2 * np.eye(60)))
    # the first eigenvalue left out is 0.7^9 = 0.04: condition about 5 of 101
    assert condition < 0.3 * np.linalg.cond(C.matrix + 1e-2 * np.eye(60))


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_it_is_scale_proof_in_float32(key, scale):
    """Oracle: the same at scale one."""
    C, _ = decaying(key, dtype=jnp.float32)
    b = jr.normal(key, (60,), jnp.float32)
    base = ok.invert(C, ok.Nystrom(9, key=key), damping=0.1).mv(b)
    scaled = lx.MatrixLinearOperator(C.matrix * jnp.float32(scale), C.tags)
    P = ok.invert(scaled, ok.Nystrom(9, key=key), damping=0.1 * scale)
    assert_allclose(P.mv(b) * scale, base, rtol=1e-4, atol=1e-4)


def test_mixed_dtypes_keep_theirs(key):
    """Oracle: the dense inverse, to the rounding of bf16."""
    k1, k2 = jr.split(key)
    rows = {"a": jr.normal(k1, (2, 6), jnp.bfloat16), "b": jr.normal(k2, (2, 5))}
    C = ok.LowRank(rows)
    P = ok.invert(C, ok.Nystrom(3, key=key), damping=1.0)
    assert jax.tree.map(
        lambda x: x.dtype, P.mv(jax.tree.map(lambda u: u[0], rows))
    ) == {"a": jnp.bfloat16, "b": FLOAT}
    want = np.linalg.inv(C.as_matrix() + np.eye(11))
    assert_allclose(P.as_matrix(), want, atol=0.05)


def test_failures_are_reported(key):
    b = jnp.ones(3)
    C = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, -1.0]))
    P = ok.invert(C, ok.Nystrom(3, key=key), damping=0.1)
    assert P.solve(b).result == ok.RESULTS.indefinite
    C = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, 0.0]))
    assert ok.invert(C, ok.Nystrom(2, key=key)).solve(b).result == ok.RESULTS.undamped
    C = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, jnp.nan]))
    P = ok.invert(C, ok.Nystrom(2, key=key), damping=0.1)
    assert P.solve(b).result == ok.RESULTS.nonfinite_operator
    C = lx.DiagonalLinearOperator(jnp.zeros(3))
    P = ok.invert(C, ok.Nystrom(2, key=key), damping=0.1)
    assert_allclose(P.mv(b), 10 * b)


@pytest.mark.parametrize(
    "use",
    [
        lambda P: P.diagonal(),
        lambda P: P.entry(0, 1),
        lambda P: ok.nystrom_preconditioner(P).mv(jnp.ones(3)),
    ],
)
@pytest.mark.parametrize(
    ("smallest", "match"), [(-1.0, "not positive"), (jnp.nan, "NaN or infinite")]
)
def test_what_is_no_curvature_raises_wherever_it_is_used(key, smallest, match, use):
    """Oracle: the message."""
    C = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, smallest]))
    P = ok.invert(C, ok.Nystrom(3, key=key), damping=0.1)
    with pytest.raises(RuntimeError, match=match):
        jax.block_until_ready(use(P))


def test_bad_calls_raise(key):
    C = lx.DiagonalLinearOperator(jnp.ones(3))
    with pytest.raises(ValueError, match="rank >= 1"):
        ok.Nystrom(0, key=key)
    with pytest.raises(
        ValueError, match="rank <= 3, the number of coordinates, got rank=4"
    ):
        ok.invert(C, ok.Nystrom(4, key=key), damping=1.0)
    with pytest.raises(ValueError, match=r"ok\.Nystrom"):
        ok.nystrom_preconditioner(ok.invert(C, ok.CG()))
    with pytest.raises(NotImplementedError, match="has no derivative"):
        jax.grad(
            lambda d: ok.invert(C, ok.Nystrom(3, key=key), damping=d).diagonal().sum()
        )(1.0)
