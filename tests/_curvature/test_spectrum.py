"""The spectrum by stochastic Lanczos quadrature, against dense eigenvalues."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matfree import decomp
from precision import assert_allclose

import optkit as ok
from optkit._curvature.spectrum import lanczos

KEY = jr.key(3)
N = 12
A = jr.normal(jr.key(6), (N, N))
A = (A + A.T) / 2
OPERATOR = lx.MatrixLinearOperator(A, lx.symmetric_tag)
EIGENVALUES = jnp.linalg.eigvalsh(A)
make = jax.jit(ok.spectrum, static_argnames=("num_probes", "num_steps"))
find = functools.partial(make, num_probes=4, num_steps=N)


def test_all_steps_find_all_eigenvalues():
    # oracle: dense
    found = find(OPERATOR, key=KEY)
    assert_allclose(found.nodes, jnp.broadcast_to(EIGENVALUES, (4, N)), rtol=1e-10)
    assert_allclose(jnp.sum(found.weights, 1), 1.0, rtol=1e-12)


def test_the_first_steps_are_those_of_matfree():
    # oracle: matfree
    z = jr.normal(KEY, (N,))
    z /= jnp.linalg.norm(z)
    _, (alpha, beta) = lanczos(OPERATOR, z, KEY, 7)
    want = decomp.tridiag_sym(7, materialize=False)(OPERATOR.mv, z)
    assert_allclose(alpha, want.J_small[0], rtol=1e-10)
    assert_allclose(beta[:-1], want.J_small[1], rtol=1e-10)
    assert_allclose(beta[-1], jnp.linalg.norm(want.residual), rtol=1e-10)


def test_an_eigenvalue_lies_within_the_error_of_every_node():
    # oracle: dense
    found = make(OPERATOR, key=KEY, num_probes=4, num_steps=6)
    gaps = jnp.min(jnp.abs(found.nodes[..., None] - EIGENVALUES), axis=-1)
    assert jnp.all(gaps <= found.errors + 1e-12)
    assert jnp.max(found.errors) > 0.1  # far from exact, so the bound says something


@pytest.mark.parametrize("fn", [lambda x: x**2, jnp.exp, lambda x: x < 0])
def test_the_mean_and_its_standard_error_are_right(fn):
    # oracle: dense mean, and the spread of estimates
    draws = [find(OPERATOR, key=key).mean(fn) for key in jr.split(KEY, 150)]
    mean, error = (jnp.stack(each) for each in zip(*draws, strict=True))
    spread = jnp.std(mean, ddof=1)
    truth = jnp.mean(fn(EIGENVALUES).astype(float))
    assert abs(jnp.mean(mean) - truth) <= 4 * spread / 150**0.5
    assert_allclose(jnp.mean(error**2), spread**2, rtol=4 * (2 / 150) ** 0.5)


def test_the_density_is_that_of_the_eigenvalues_and_integrates_to_one():
    # oracle: dense eigenvalues, smoothed by hand
    many = [find(OPERATOR, key=key) for key in jr.split(KEY, 100)]
    found = jax.tree.map(lambda *parts: jnp.concatenate(parts), *many)
    grid = jnp.linspace(-12.0, 12.0, 241)
    mean, error = found.density(grid, 0.5)
    bumps = jnp.exp(-(((grid[:, None] - EIGENVALUES) / 0.5) ** 2) / 2)
    want = jnp.mean(bumps, axis=1) / (0.5 * (2 * jnp.pi) ** 0.5)
    assert jnp.all(jnp.abs(mean - want) <= 4 * error + 1e-12)
    assert_allclose(jnp.trapezoid(mean, grid), 1.0, rtol=1e-6)


def test_a_krylov_space_that_ends_is_left_for_a_new_one():
    # oracle: closed form; this C has two eigenvalues, so a start spans two vectors
    C = ok.LowRank({"a": jnp.eye(2, 20)})
    found = make(C, key=KEY, num_probes=4, num_steps=8)
    distance = jnp.minimum(jnp.abs(found.nodes), jnp.abs(found.nodes - 1))
    assert_allclose(distance, 0.0, atol=1e-12)
    assert_allclose(found.nodes[:, -1], 1.0, rtol=1e-12)
    assert_allclose(20 * found.mean(lambda x: x).mean, 2.0, rtol=1e-12)


def test_a_multiple_of_the_identity_and_zero_have_one_eigenvalue():
    # oracle: closed form
    for scale in (0.0, 3.0):
        C = lx.MatrixLinearOperator(scale * jnp.eye(N), lx.symmetric_tag)
        found = find(C, key=KEY)
        assert_allclose(found.nodes, scale, atol=1e-13)
        assert_allclose(found.mean(jnp.cos).mean, np.cos(scale), rtol=1e-12)


def test_trees_of_mixed_dtypes_keep_float32_vectors():
    # oracle: dense, to bfloat16 rounding of the products
    rows = {"a": jr.normal(KEY, (5, 20)), "b": jr.normal(jr.key(2), (5, 7))}
    rows = {"a": rows["a"].astype(jnp.bfloat16), "b": rows["b"].astype(jnp.float32)}
    C = ok.LowRank(rows)
    found = make(C, key=KEY, num_probes=4, num_steps=8)
    want = jnp.linalg.eigvalsh(C.as_matrix())
    assert found.nodes.dtype == jnp.float32
    assert_allclose(found.nodes[:, -5:].mean(0), want[-5:], rtol=2**-8)


def test_sharded_params_give_the_same_and_are_not_gathered():
    # oracle: dense
    params = {"w": jr.normal(KEY, (8, 3)), "b": jr.normal(KEY, (4,))}

    @jax.jit
    def find(params):
        C = ok.hessian(lambda p: sum(jnp.sum(x**4) for x in jax.tree.leaves(p)), params)
        return ok.spectrum(C, key=KEY, num_probes=1, num_steps=28)

    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, NamedSharding(mesh, PartitionSpec("x")))
        compiled = find.lower(sharded).compile()
        found = compiled(sharded)
    want = jnp.sort(jnp.concatenate([12 * x.ravel() ** 2 for x in params.values()]))
    assert_allclose(found.nodes[0], want, rtol=1e-9)
    assert "all-gather" not in compiled.as_text()


def test_a_curvature_that_is_not_finite_shows():
    # oracle: identity
    C = lx.MatrixLinearOperator(A.at[0, 0].set(jnp.nan), lx.symmetric_tag)
    found = find(C, key=KEY)
    assert jnp.isnan(found.mean(lambda x: x).mean)
    assert jnp.isnan(found.density(jnp.zeros(1), 1.0).mean[0])


def test_one_probe_has_no_standard_error():
    # oracle: identity
    found = ok.Spectrum(*jnp.ones((3, 1, 2)), 2)
    assert found.mean(jnp.exp).standard_error is None


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        (
            {"num_steps": N + 1},
            ValueError,
            f"num_steps <= {N}, the number of params, got num_steps=13",
        ),
        ({"num_probes": 0}, ValueError, "num_probes"),
        ({"key": jnp.zeros(2)}, TypeError, "random key"),
        ({"operator": lx.MatrixLinearOperator(A)}, ValueError, "symmetric"),
    ],
)
def test_arguments_are_checked(changes, error, match):
    # oracle: identity
    arguments = {"operator": OPERATOR, "key": KEY, "num_probes": 1, "num_steps": 2}
    with pytest.raises(error, match=f"`ok.spectrum`.*{match}"):
        ok.spectrum(**(arguments | changes))


def test_vectors_are_eigenvectors_within_the_errors_of_their_nodes():
    # oracle: dense. With all steps they are exact, with fewer their residual is known.
    many = jax.jit(
        ok.spectrum, static_argnames=("num_probes", "num_steps", "num_vectors")
    )
    whole = many(OPERATOR, key=KEY, num_probes=2, num_steps=N, num_vectors=3)
    want = jnp.linalg.eigh(A)[1].T[-3:]
    for found in whole.vectors:
        overlap = jnp.abs(jnp.sum(found * want, axis=1))
        assert_allclose(overlap, 1.0, rtol=1e-10)
    part = many(OPERATOR, key=KEY, num_probes=2, num_steps=6, num_vectors=2)
    for vectors, nodes, errors in zip(
        part.vectors, part.nodes, part.errors, strict=True
    ):
        residual = vectors @ A - nodes[-2:, None] * vectors
        size = jnp.linalg.norm(residual, axis=1)
        assert_allclose(size, errors[-2:], rtol=1e-8, float32=1e-3)
        assert_allclose(jnp.linalg.norm(vectors, axis=1), 1.0, rtol=1e-12)


def test_vectors_are_trees_like_the_params_and_none_unless_asked_for():
    # oracle: closed form, the Hessian is diagonal
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(1), "n": None}

    def loss(p):
        return jnp.sum(p["a"] ** 2).astype(p["b"].dtype) + 5 * jnp.sum(p["b"] ** 2)

    C = ok.hessian(loss, params)
    options = {"key": KEY, "num_probes": 2, "num_steps": 2}
    assert ok.spectrum(C, **options).vectors is None
    vectors = ok.spectrum(C, **options, num_vectors=1).vectors
    assert vectors["a"].shape == (2, 1, 2)
    assert vectors["b"].shape == (2, 1, 1)
    assert vectors["n"] is None
    assert vectors["a"].dtype == jnp.float32
    assert_allclose(jnp.abs(vectors["b"]), 1.0, rtol=1e-2)
    with pytest.raises(ValueError, match="num_vectors <= 2, which is `num_steps`"):
        ok.spectrum(C, **options, num_vectors=3)
