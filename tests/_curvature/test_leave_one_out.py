"""XTrace, XDiag and XNysTrace, against their definitions with every probe left out."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matfree import stochtrace
from precision import X64, assert_allclose

import optkit as ok
from optkit._curvature.leave_one_out import on_sphere
from optkit._vector import signs

N, K = 30, 7
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))[0]


def operator(eigenvalues, tag=lx.positive_semidefinite_tag):
    matrix = (BASIS * eigenvalues) @ BASIS.T
    return lx.MatrixLinearOperator(jnp.asarray((matrix + matrix.T) / 2), tag)


DECAYING = operator(0.7 ** np.arange(N))
MIXED = operator((-0.7) ** np.arange(N), lx.symmetric_tag)


def naive(C, omega, estimate):
    """The estimates with each probe left out, and an orthonormal basis of the rest."""
    for i, w in enumerate(omega):
        others = np.delete(omega, i, axis=0).T
        yield estimate(C, w, others, np.linalg.qr(C @ others)[0])


def trace_of(C, w, others, Q):
    left = w - Q @ (Q.T @ w)
    factor = (N - Q.shape[1]) / (left @ left)
    return np.trace(Q.T @ C @ Q) + factor * left @ C @ left


def diagonal_of(C, w, others, Q):
    low = Q @ (Q.T @ C)
    return np.diag(low) + w * ((C - low) @ w)


def nystrom_of(C, w, others, Q):
    Y = C @ others
    low = Y @ np.linalg.solve(others.T @ Y, Y.T)
    V = np.linalg.qr(others)[0]
    left = w - V @ (V.T @ w)
    return np.trace(low) + (N - V.shape[1]) / (left @ left) * w @ (C - low) @ w


def sphere(key, C):
    return on_sphere(key, C.in_structure(), K, N)


def probes_of_xdiag(key, C):
    keys = jr.split(jr.split(key)[0], K)
    return jax.lax.map(lambda key: signs(key, C.in_structure()), keys)


CASES = pytest.mark.parametrize(
    ("method", "C", "probes", "estimate"),
    [
        (ok.xtrace, DECAYING, lambda k, C: sphere(jr.split(k)[0], C), trace_of),
        (ok.xtrace, MIXED, lambda k, C: sphere(jr.split(k)[0], C), trace_of),
        (ok.xdiag, DECAYING, probes_of_xdiag, diagonal_of),
        (ok.xdiag, MIXED, probes_of_xdiag, diagonal_of),
        (ok.xnystrace, DECAYING, sphere, nystrom_of),
    ],
)


@CASES
def test_estimates_leave_each_probe_out_in_turn(method, C, probes, estimate, key):
    """Oracle: the definition in NumPy, with a factorisation for each probe."""
    omega = np.asarray(probes(key, C))
    want = np.stack(list(naive(np.asarray(C.as_matrix()), omega, estimate)))
    got = method(C, key=key, num_probes=K)
    assert_allclose(got.mean, want.mean(0), rtol=1e-10, atol=1e-10, float32=1e-3)
    error = want.std(0, ddof=1) / K**0.5
    assert_allclose(got.standard_error, error, rtol=1e-8, atol=1e-10, float32=2e-3)


def many(method, C, num_probes, num=300):
    one = functools.partial(method, C, num_probes=num_probes)
    return jax.jit(jax.vmap(lambda key: one(key=key)))(jr.split(jr.key(5), num))


@pytest.mark.parametrize(
    ("method", "num_probes", "gain", "claims"),
    [(ok.xtrace, 10, 5, 0.6), (ok.xdiag, 10, 4, 0.6), (ok.xnystrace, 20, 25, 0.2)],
)
def test_they_are_unbiased_and_far_better_where_the_spectrum_decays(
    method, num_probes, gain, claims
):
    """Oracle: the dense trace, the spread of 300 estimates, Hutchinson's errors."""
    is_diagonal = method is ok.xdiag
    matrix = DECAYING.as_matrix()
    truth = jnp.diag(matrix) if is_diagonal else jnp.trace(matrix)
    plain = ok.hutchinson_diag if is_diagonal else ok.hutchinson_trace
    found, other = many(method, DECAYING, num_probes), many(plain, DECAYING, 20)
    spread = jnp.std(found.mean, axis=0)
    bias = jnp.mean(found.mean, axis=0) - truth
    assert jnp.all(jnp.abs(bias) < 4 * spread / 300**0.5 + 1e-6)
    error, errors = (jnp.sqrt(jnp.mean((e.mean - truth) ** 2)) for e in (found, other))
    assert errors > gain * error  # for the same number of products
    claimed = jnp.sqrt(jnp.mean(found.standard_error**2))
    assert claims < claimed / error < 1.3


@pytest.mark.parametrize("method", [ok.xtrace, ok.xdiag, ok.xnystrace])
@pytest.mark.parametrize("rank", [0, 3])
def test_they_are_exact_below_full_rank(method, rank, key):
    """Oracle: the dense matrix; the basis of more probes than the rank is deficient."""
    eigenvalues = np.where(np.arange(N) < rank, 2.0, 0.0)
    C = operator(eigenvalues)
    want = jnp.diag(C.as_matrix()) if method is ok.xdiag else 2.0 * rank
    got = method(C, key=key, num_probes=K)
    assert_allclose(got.mean, want, atol=1e-10, float32=1e-3)
    assert_allclose(got.standard_error, 0 * got.mean, atol=1e-10, float32=1e-3)


@pytest.mark.x64
def test_xtrace_has_the_errors_of_matfree():
    """Oracle: matfree, another draw of the same estimate."""
    sampler = stochtrace.sampler_normal(jnp.zeros(N), num=10)
    peer = stochtrace.estimator_leave_one_out(
        stochtrace.leave_one_out_xtrace(), sampler
    )
    product = DECAYING.mv
    theirs = jax.jit(jax.vmap(lambda key: peer(product, key)))(jr.split(jr.key(8), 300))
    ours, truth = many(ok.xtrace, DECAYING, 10).mean, jnp.trace(DECAYING.as_matrix())
    ratio = jnp.std(ours - truth) / jnp.std(theirs - truth)
    assert 0.75 < ratio < 1.33


@pytest.mark.parametrize("method", [ok.xtrace, ok.xdiag, ok.xnystrace])
def test_trees_keep_their_structure_and_dtypes(method, key):
    """Oracle: closed form, the diagonal 1, ..., 6 in two leaves of two dtypes."""
    params = {"a": jnp.ones((2, 2), jnp.bfloat16), "b": jnp.ones(2), "n": None}
    weights = {"a": jnp.arange(1.0, 5).reshape(2, 2), "b": jnp.array([5.0, 6.0])}

    def loss(p):
        a = p["a"].astype(p["b"].dtype)
        return (
            jnp.sum(weights["a"] * a**2) / 2 + jnp.sum(weights["b"] * p["b"] ** 2) / 2
        )

    C = ok.hessian(loss, params)
    C = lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)
    mean = method(C, key=key, num_probes=6).mean
    if method is not ok.xdiag:
        assert_allclose(mean, 21.0, rtol=0.05)
        return
    assert jax.tree.structure(mean) == jax.tree.structure(params)
    assert mean["a"].dtype == jnp.bfloat16
    assert mean["b"].dtype == params["b"].dtype


@pytest.mark.parametrize("method", [ok.xtrace, ok.xdiag, ok.xnystrace])
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_params_give_the_same_estimate(method, axis_type, key):
    """Oracle: one device."""
    params = jnp.linspace(0.5, 1.0, 16)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec("d")))

    def estimate(params):
        C = ok.hessian(lambda x: jnp.sum(x) ** 2 / 9 + jnp.sum(x**3), params)
        C = lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)
        return method(C, key=key, num_probes=4)

    with jax.set_mesh(mesh):
        many_devices = jax.jit(estimate)(placed)
    want = jax.jit(estimate)(params)
    tolerance = {"rtol": 1e-9, "atol": 1e-9, "float32": 1e-3}
    for got, one in zip(many_devices, want, strict=True):
        assert_allclose(np.asarray(got), one, **tolerance)


def test_squares_give_row_norms_and_the_frobenius_norm(key):
    """Oracle: dense. C C has the squared norms of the rows of C on its diagonal."""
    C = lx.TaggedLinearOperator(MIXED @ MIXED, lx.positive_semidefinite_tag)
    matrix = MIXED.as_matrix()
    squares = ok.xdiag(C, key=key, num_probes=25).mean
    assert_allclose(squares, jnp.sum(matrix**2, axis=1), atol=1e-6)
    found = ok.xnystrace(C, key=key, num_probes=25).mean
    assert_allclose(found**0.5, jnp.linalg.norm(matrix), rtol=1e-6, float32=1e-4)


def test_an_operator_that_may_be_indefinite_is_refused(key):
    # Oracle: the message.
    with pytest.raises(ValueError, match=r"`ok\.xnystrace` needs .* `ok\.xtrace`"):
        ok.xnystrace(MIXED, key=key, num_probes=3)
    assert X64 or jnp.isfinite(ok.xtrace(MIXED, key=key, num_probes=3).mean)
