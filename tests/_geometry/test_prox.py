"""Proximal operators: definition, derivatives, corners."""

import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from precision import X64, assert_allclose
from problems import assert_derivatives

import optkit as ok


def nuclear_norm(y):
    return jnp.sum(jnp.linalg.svd(y, compute_uv=False))


def only_positive(y):
    return jnp.where(jnp.all(y >= 0), 0.0, jnp.inf)


V = jnp.array([[1.5, -0.3, 0.8], [-2.0, 0.1, 0.45], [0.6, 1.1, -0.9], [0.2, 0.7, 1.3]])
WEIGHTS = jnp.linspace(0.2, 0.9, 12).reshape(4, 3)
RIDGE = jnp.linspace(0.5, 2.0, 12).reshape(4, 3)
HALF = jnp.asarray(0.5)
CASES = {  # name: (prox of (v, strengths, t), the strengths, r)
    "lasso": (ok.prox.lasso, (HALF,), lambda y, a: a * jnp.sum(abs(y))),
    "weighted_lasso": (ok.prox.lasso, (WEIGHTS,), lambda y, a: jnp.sum(a * abs(y))),
    "ridge": (ok.prox.ridge, (RIDGE,), lambda y, b: 0.5 * jnp.sum(b * y**2)),
    "elastic_net": (
        ok.prox.elastic_net,
        (WEIGHTS, RIDGE),
        lambda y, a, b: jnp.sum(a * abs(y) + 0.5 * b * y**2),
    ),
    "non_negative_lasso": (
        ok.prox.non_negative_lasso,
        (WEIGHTS,),
        lambda y, a: jnp.sum(a * y) + only_positive(y),
    ),
    "non_negative_ridge": (
        ok.prox.non_negative_ridge,
        (RIDGE,),
        lambda y, b: 0.5 * jnp.sum(b * y**2) + only_positive(y),
    ),
    "group_lasso": (ok.prox.group_lasso, (HALF,), lambda y, a: a * jnp.linalg.norm(y)),
    "nuclear": (ok.prox.nuclear, (2 * HALF,), lambda y, a: a * nuclear_norm(y)),
    "wide_nuclear": (
        lambda v, a, t: ok.prox.nuclear(v.T, a, t).T,
        (2 * HALF,),
        lambda y, a: a * nuclear_norm(y),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_prox_is_the_minimum_that_defines_it(name, key):
    """Oracle: strong convexity, objective(z) - objective(y) >= ½|z - y|² for all z."""
    prox, strengths, r = CASES[name]
    t = jnp.asarray(0.7)

    def objective(y):
        return 0.5 * jnp.sum((y - V) ** 2) + t * r(y, *strengths)

    y = jax.jit(prox)(V, *strengths, t)
    assert y.shape == V.shape
    assert jnp.isfinite(objective(y))
    scales = jnp.logspace(-4, 0, 200)[:, None, None]
    z = y + scales * jr.normal(key, (200, *V.shape))
    z = jnp.concatenate([z, jnp.maximum(z, 0), jnp.where(y != 0, z, 0)])
    gap = jax.jit(jax.vmap(objective))(z) - objective(y)
    square = 0.5 * jnp.sum((z - y) ** 2, axis=(1, 2))
    assert jnp.all(gap >= square * (1 - 1e-9) - (1e-14 if X64 else 1e-5))


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_a_prox_are_right_in_all_its_arguments(name, key):
    """Oracle: central differences."""
    prox, strengths, _ = CASES[name]
    assert_derivatives(prox, (V, *strengths, jnp.asarray(0.7)), key)


@pytest.mark.parametrize("name", CASES)
def test_derivatives_are_finite_at_the_corners(name):
    """Oracle: finiteness at v = 0, at the kinks, and at strength 0."""
    prox, strengths, _ = CASES[name]
    zeros = jax.tree.map(jnp.zeros_like, strengths)
    ones = jax.tree.map(jnp.ones_like, strengths)
    points = [jnp.zeros_like(V), jnp.ones_like(V), -jnp.ones_like(V), V]
    t = jnp.ones(())
    jacobian = jax.jit(jax.jacrev(prox, argnums=range(2 + len(strengths))))
    for v in points:
        for weights in (zeros, ones):
            for jac in jacobian(v, *weights, t):
                assert jnp.all(jnp.isfinite(jac))
    identity = jacobian(V, *zeros, t)[0].reshape(12, 12)
    is_clipped = name.startswith("non_negative")
    expected = np.diag(np.asarray(V > 0, float).ravel()) if is_clipped else np.eye(12)
    assert_allclose(identity, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["lasso", "elastic_net", "group_lasso", "nuclear"])
@pytest.mark.parametrize(
    "v",
    [jnp.zeros((2, 3)), jnp.eye(2, 3, 1), jnp.outer(jnp.ones(2), jnp.arange(3.0))],
    ids=["zero", "with zeros", "of rank one"],
)
def test_a_strength_of_zero_leaves_a_prox_the_identity_at_every_v(name, v):
    """Oracle: the derivative in v is 1 in both modes; in the strength, 0 at v = 0."""
    prox, strengths, _ = CASES[name]
    zeros = [jnp.zeros(())] * len(strengths)
    t = jnp.ones(())
    for derivative in (jax.jacfwd, jax.jacrev):
        by_v = derivative(prox)(v, *zeros, t).reshape(6, 6)
        assert_allclose(by_v, jnp.eye(6), atol=10 * float(jnp.finfo(v).eps))
    by_strength = jax.jacfwd(lambda a: prox(jnp.zeros((2, 3)), *[a] * len(zeros), t))
    assert not by_strength(jnp.zeros(())).any()


@pytest.mark.parametrize("t", [0.5, 2.0])
def test_nuclear_has_a_derivative_at_equal_singular_values(t, key):
    """Oracle: central differences at 2Q and at a matrix with two equal pairs."""
    q, _ = jnp.linalg.qr(jr.normal(key, (3, 3)))
    p, _ = jnp.linalg.qr(jr.normal(jr.key(1), (5, 4)))
    pairs = (p * jnp.array([3.0, 3.0, 1.0, 1.0])) @ p[:4].T
    for v in (2.5 * q, pairs):
        one = jnp.asarray(1.2)
        assert_derivatives(ok.prox.nuclear, (v, one, jnp.asarray(t)), key)


def test_nuclear_has_second_derivatives_and_works_on_stacks(key):
    """Oracle: central differences of the gradient; a loop over the matrices."""
    v = jr.normal(key, (2, 4, 3))

    def f(v):
        return jnp.sum(ok.prox.nuclear(v, 0.6) ** 3)

    assert_derivatives(jax.grad(f), (v,), key)
    stacked = ok.prox.nuclear(v, jnp.array([0.6, 1.0]))
    for i, strength in enumerate((0.6, 1.0)):
        assert_allclose(stacked[i], ok.prox.nuclear(v[i], strength), rtol=1e-12)


def test_group_lasso_does_not_overflow():
    """Oracle: the same at unit scale; float32."""
    v = jnp.array([3.0, 4.0], jnp.float32)
    for scale in (1e-30, 1e30):
        y = ok.prox.group_lasso(scale * v, scale * 2.5)
        assert_allclose(y, scale * 0.5 * v, rtol=1e-6)


def test_a_prox_takes_trees_narrow_dtypes_and_prefixes():
    """Oracle: leaf by leaf; bfloat16 in and out; None stays."""
    v = {"w": V, "rest": (jnp.array([2.0, -3.0], jnp.bfloat16), None)}
    y = ok.prox.elastic_net(v, {"w": WEIGHTS, "rest": 1.0}, 0.5, step_size=0.1)
    assert_allclose(y["w"], ok.prox.elastic_net(V, WEIGHTS, 0.5, 0.1))
    assert y["rest"][0].dtype == jnp.bfloat16
    assert y["rest"][1] is None
    y = ok.prox.group_lasso({"a": jnp.array([3.0]), "b": jnp.float32(4.0)}, 2.5)
    assert_allclose([y["a"][0], y["b"]], [1.5, 2.0])
    assert y["b"].dtype == jnp.float32
    assert ok.prox.none(v, None, 0.1) is v


def test_rows_are_groups_under_vmap():
    """Oracle: a loop over the rows."""
    rows = jax.vmap(ok.prox.group_lasso, (0, None, None))(V, 0.9, 1.0)
    assert_allclose(rows, [ok.prox.group_lasso(v, 0.9) for v in V], rtol=1e-14)


@pytest.mark.usefixtures("standard_promotion")
def test_prox_operators_are_those_of_jaxopt():
    """Oracle: jaxopt. Its elastic net has λ and γ with l1 = λ, l2 = λ γ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("jaxopt.prox")
    pairs = [
        (ok.prox.lasso(V, 0.6, 0.5), theirs.prox_lasso(V, 0.6, 0.5)),
        (
            ok.prox.elastic_net(V, 0.6, 0.6 * 0.2, 0.5),
            theirs.prox_elastic_net(V, (0.6, 0.2), 0.5),
        ),
        (ok.prox.ridge(V, 0.6, 0.5), theirs.prox_ridge(V, 0.6, 0.5)),
        (ok.prox.group_lasso(V, 0.6, 0.5), theirs.prox_group_lasso(V, 0.6, 0.5)),
        (
            ok.prox.non_negative_lasso(V, 0.6, 0.5),
            theirs.prox_non_negative_lasso(V, 0.6, 0.5),
        ),
        (
            ok.prox.non_negative_ridge(V, 0.6, 0.5),
            theirs.prox_non_negative_ridge(V, 0.6, 0.5),
        ),
    ]
    for ours, other in pairs:
        assert_allclose(ours, other, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ok.prox.lasso(V, -1.0), "l1 >= 0"),
        (lambda: ok.prox.lasso(V, {"a": 1.0}), "prefix of v"),
        (lambda: ok.prox.lasso(V, jnp.ones((2, 4, 3))), "broadcast"),
        (lambda: ok.prox.lasso(V, 1.0, -1.0), "step_size >= 0"),
        (lambda: ok.prox.nuclear(V[0], 1.0), "needs matrices"),
        (lambda: ok.prox.group_lasso(V, -1.0), "strength >= 0"),
    ],
)
def test_a_wrong_strength_is_named(call, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        call()


def test_integers_are_refused():
    """Oracle: the message."""
    with pytest.raises(TypeError, match=r"real floating leaves, got int.* at v"):
        ok.prox.lasso(jnp.arange(3), 1.0)


@pytest.mark.parametrize("arguments", [(1.0, -1.0), (jnp.ones(2), 1.0)])
def test_a_group_has_one_strength_and_a_step_that_is_not_negative(arguments):
    """Oracle: the message. A negative step would lengthen v."""
    with pytest.raises(
        ValueError, match=r"`ok.prox.group_lasso` needs (strength|a finite)"
    ):
        ok.prox.group_lasso(jnp.ones(2), *arguments)
