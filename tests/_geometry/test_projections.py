"""Box sections, sparse simplices, second-order cones."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from precision import X64, assert_allclose
from problems import assert_derivatives

import optkit as ok

ROUNDING = 1e-12 if X64 else 1e-6

box_section = jax.jit(ok.projections.box_section)
cone = ok.projections.second_order_cone


def by_bisection(x, l, u, w, total):  # noqa: E741
    """NumPy: 200 halvings of τ."""
    low, high = -1e6, 1e6
    for _ in range(200):
        tau = (low + high) / 2
        below = w @ np.clip(x + tau * w, l, u) < total
        low, high = (tau, high) if below else (low, tau)
    return np.clip(x + low * w, l, u)


def test_a_box_section_is_found_by_bisection_too(rng):
    """Oracle: bisection in NumPy; weights of both signs and 0; large and small."""
    for scale in 10.0 ** np.arange(-3, 4):
        x, w = scale * rng.normal(size=7), rng.normal(size=7)
        w[2] = 0
        l = -scale * rng.uniform(size=7)  # noqa: E741
        u = l + scale * rng.uniform(size=7)
        total = w @ rng.uniform(l, u)
        p = box_section(*map(jnp.asarray, (x, l, u, w, total)))
        assert_allclose(p, by_bisection(x, l, u, w, total), atol=1e-9 * max(1, scale))
        assert_allclose(w @ p, total, atol=1e-13 * scale)


def test_a_box_section_without_bounds_is_a_hyperplane(rng):
    """Oracle: the affine set; all or some bounds infinite; τ far from every bound."""
    x, w = jnp.asarray(rng.normal(size=5)), jnp.asarray(rng.normal(size=5))
    expected = ok.projections.affine_set(x, w[None], jnp.array([300.0]))
    p = box_section(x, -jnp.inf, jnp.inf, w, 300.0)
    assert_allclose(p, expected, rtol=1e-12)
    lower = jnp.where(w > 0, x - 1, -jnp.inf)
    assert_allclose(box_section(x, lower, jnp.inf, jnp.abs(w), 1e6) @ jnp.abs(w), 1e6)


def test_all_derivatives_of_a_box_section_are_right(rng, key):
    """Oracle: central differences in the point, the bounds, the weights, the total."""
    x, w = jnp.asarray(rng.normal(size=8)), jnp.asarray(rng.normal(size=8))
    l, u = jnp.full(8, -0.4), jnp.linspace(0.1, 0.8, 8)  # noqa: E741
    args = (x, l, u, w, jnp.asarray(0.3))
    p = box_section(*args)
    assert 2 < jnp.sum((p > l) & (p < u)) < 8
    assert_derivatives(ok.projections.box_section, args, key)
    half_open = (x, l, w, jnp.asarray(0.3))
    assert_derivatives(
        lambda x, l, w, b: ok.projections.box_section(x, l, jnp.inf, w, b),  # noqa: E741
        half_open,
        key,
    )


def test_a_box_section_is_differentiable_twice(rng, key):
    """Oracle: central differences of the gradient in the weights."""
    x, w = jnp.asarray(rng.normal(size=6)), jnp.asarray(rng.uniform(0.5, 2, 6))

    def f(w):
        return jnp.sum(ok.projections.box_section(x, 0.0, 0.7, w, 1.0) ** 3)

    assert_derivatives(jax.grad(f), (w,), key)


@pytest.mark.parametrize("total", [-0.1, 3.1, np.nan])
def test_an_empty_box_section_gives_nan(total):
    """Oracle: by hand, 0 <= Σp <= 3."""
    assert jnp.all(jnp.isnan(box_section(jnp.zeros(3), 0.0, 1.0, 1.0, total)))
    assert jnp.all(jnp.isnan(box_section(jnp.zeros(3), 1.0, 0.0, 1.0, 1.5)))


@pytest.mark.parametrize("total", [0.0, 3.0])
def test_a_box_section_may_be_one_point(total):
    """Oracle: by hand."""
    p = box_section(jnp.array([0.3, 2.0, -1.0]), 0.0, 1.0, 1.0, total)
    assert_allclose(p, np.full(3, total / 3), atol=1e-15)


@pytest.mark.parametrize("x", [[0.3, 0.3, -0.2], [0.3, 0.3, 0.3], [0.1, 0.2, 0.3]])
def test_the_only_point_of_a_box_section_does_not_move_with_x(x):
    """Oracle: by hand; the total moves the entries that would leave their bounds."""
    x = jnp.array(x)
    jacobian = jax.jit(jax.jacfwd(ok.projections.box_section, argnums=(0, 4)))
    by_x, by_total = jacobian(x, -0.5, 1.0, 1.0, -1.5)
    assert_allclose(by_x, np.zeros((3, 3)), atol=1e-15)
    is_first = np.asarray(x == x.max(), float)
    assert_allclose(by_total, is_first / is_first.sum(), rtol=1e-12)


def test_a_sparse_simplex_is_the_best_of_all_supports(rng, key):
    """Oracle: enumeration of the supports; central differences."""
    x = jnp.asarray(rng.normal(size=5))
    p = ok.projections.sparse_simplex(x, 2, 1.5)
    distances = []
    for i, j in itertools.combinations(range(5), 2):
        a = np.clip((x[i] - x[j] + 1.5) / 2, 0, 1.5)
        q = np.zeros(5)
        q[i], q[j] = a, 1.5 - a
        distances.append(np.sum((q - x) ** 2))
    assert_allclose(np.sum((p - x) ** 2), min(distances), rtol=1e-12)
    assert jnp.sum(p > 0) <= 2
    assert_derivatives(
        lambda x, s: ok.projections.sparse_simplex(x, 3, s), (x, jnp.asarray(1.5)), key
    )


def test_the_whole_simplex_is_that_of_optax():
    """Oracle: optax's simplex and jaxopt's sparse one."""
    x = jnp.array([0.9, -0.2, 0.4, 0.35])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("jaxopt.projection")
    with jax.numpy_dtype_promotion("standard"):
        for k in (1, 2, 4):
            expected = theirs.projection_sparse_simplex(x, k)
            assert_allclose(ok.projections.sparse_simplex(x, k), expected, atol=1e-15)


@pytest.mark.parametrize("t", [-9.0, -1.0, 0.5, 9.0])
def test_a_second_order_cone_and_its_polar_split_a_point(t, key):
    """Oracle: Moreau, x = p + q with p in K, -q in K and pᵀq = 0; differences."""
    x = jnp.array([t, 1.0, -2.0, 2.0])
    p = cone(x)
    q = x - p
    for point in (p, -q):
        assert jnp.linalg.norm(point[1:]) <= point[0] + ROUNDING
    assert abs(p @ q) < ROUNDING
    assert_derivatives(cone, (x,), key)


def test_a_second_order_cone_has_finite_derivatives_on_its_axis():
    """Oracle: finiteness at the apex and where v = 0."""
    for t in (-1.0, 0.0, 1.0):
        jacobian = jax.jacrev(cone)(jnp.array([t, 0.0, 0.0]))
        assert jnp.all(jnp.isfinite(jacobian))
    assert_allclose(cone(jnp.array([-1.0])), [0.0])


def test_narrow_dtypes_and_vmap(key):
    """Oracle: float64 one at a time."""
    x = jr.normal(key, (3, 4))
    exact = [box_section(a, 0.0, 1.0, 1.0, 1.0) for a in x]
    batched = jax.jit(jax.vmap(lambda a: box_section(a, 0.0, 1.0, 1.0, 1.0)))
    assert_allclose(batched(x), exact, atol=1e-15)
    single = batched(x.astype(jnp.float32))
    assert single.dtype == jnp.float32
    assert_allclose(single, exact, atol=1e-6)
    half = box_section(jnp.ones(2, jnp.bfloat16), 0.0, 1.0, 1.0, 1.0)
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: box_section(jnp.ones((2, 2)), 0.0, 1.0, 1.0, 1.0), "shape"),
        (lambda: ok.projections.sparse_simplex(jnp.ones(3), 4), "max_nonzero=4"),
        (lambda: ok.projections.sparse_simplex(jnp.ones(3), 0), "max_nonzero >= 1"),
        (lambda: cone(jnp.ones(0)), "empty"),
    ],
)
def test_bad_input_is_named(call, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        call()
