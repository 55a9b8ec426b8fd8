"""Affine sets and polyhedra: against every active set, tried in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from problems import assert_derivatives

import optkit as ok

project = jax.jit(ok.projections.polyhedron)


def nearest_by_enumeration(x, G, h, A, b):
    """Of the projections onto all sets of equations, the one that satisfies KKT."""
    for size in range(len(h) + 1):
        for active in itertools.combinations(range(len(h)), size):
            rows = list(active)
            M, r = np.concatenate([A, G[rows]]), np.concatenate([b, h[rows]])
            if np.linalg.matrix_rank(M) < len(M):
                continue
            dual = np.linalg.lstsq(M @ M.T, M @ x - r, rcond=None)[0] if len(M) else []
            p = x - M.T @ dual if len(M) else x
            if np.all(G @ p <= h + 1e-9) and np.all(np.asarray(dual)[len(b) :] >= 0):
                return p
    raise AssertionError("no point is optimal")


def random_polyhedron(rng, n, k, m):
    """Around a point inside, so not empty."""
    G, A, inside = rng.normal(size=(k, n)), rng.normal(size=(m, n)), rng.normal(size=n)
    return G, G @ inside + rng.uniform(0, 0.5, k), A, A @ inside


@pytest.mark.parametrize("m", [0, 1])
def test_the_projection_is_that_of_the_right_active_set(rng, m):
    """Oracle: enumeration; points near and far, under vmap."""
    G, h, A, b = random_polyhedron(rng, 4, 6, m)
    x = 10.0 ** rng.uniform(-2, 4, (40, 1)) * rng.normal(size=(40, 4))
    expected = [nearest_by_enumeration(point, G, h, A, b) for point in x]
    p = jax.jit(jax.vmap(ok.projections.polyhedron, (0, None, None, None, None)))(
        *map(jnp.asarray, (x, G, h, A, b))
    )
    scale = np.linalg.norm(x, axis=1)
    assert np.max(np.abs(p - np.array(expected)).max(1) / scale) < 1e-12


def test_all_derivatives_of_a_polyhedron_are_right(rng, key):
    """Oracle: central differences in x, G, h, A and b together."""
    G, h, A, b = map(jnp.asarray, random_polyhedron(rng, 4, 6, 1))
    x = jnp.asarray(10 * rng.normal(size=4))
    p = project(x, G, h, A, b)
    assert 1 <= jnp.sum(jnp.abs(G @ p - h) < 1e-9) < 4
    assert_derivatives(ok.projections.polyhedron, (x, G, h, A, b), key)


def test_an_affine_set_may_have_dependent_rows(rng, key):
    """Oracle: the normal equations of independent rows; central differences."""
    A, x = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=5))
    b = jnp.asarray(rng.normal(size=2))
    p = ok.projections.affine_set(x, A, b)
    assert_allclose(p, x - A.T @ jnp.linalg.solve(A @ A.T, A @ x - b), rtol=1e-12)
    assert_derivatives(ok.projections.affine_set, (x, A, b), key)
    twice, both = jnp.concatenate([A, 3 * A[:1]]), jnp.concatenate([b, 3 * b[:1]])
    assert_allclose(ok.projections.affine_set(x, twice, both), p, rtol=1e-12)


def test_an_affine_set_has_second_derivatives(rng, key):
    """Oracle: central differences of the gradient."""
    A, x = jnp.asarray(rng.normal(size=(2, 4))), jnp.asarray(rng.normal(size=4))

    def f(A):
        return jnp.sum(ok.projections.affine_set(x, A, jnp.ones(2)) ** 3)

    assert_derivatives(jax.grad(f), (A,), key, tolerance=1e-7)


def test_points_inside_stay_and_move_with_derivative_one():
    """Oracle: the identity."""
    G, h = jnp.eye(3), jnp.ones(3)
    x = jnp.array([0.5, -2.0, 0.9])
    assert_allclose(project(x, G, h), x)
    assert_allclose(jax.jacfwd(project)(x, G, h), np.eye(3))


def test_equations_may_be_pairs_of_inequalities():
    """Oracle: the affine set; a set without interior."""
    a = jnp.array([[1.0, 2.0, -1.0]])
    x = jnp.array([3.0, 1.0, 4.0])
    p = project(x, jnp.concatenate([a, -a]), jnp.array([2.0, -2.0]))
    assert_allclose(p, ok.projections.affine_set(x, a, jnp.array([2.0])), rtol=1e-9)


def test_repeated_and_useless_inequalities_do_no_harm():
    """Oracle: the same set without them."""
    G, h = jnp.array([[1.0, 1.0]]), jnp.array([1.0])
    x = jnp.array([2.0, 1.5])
    more = jnp.concatenate([G, 2 * G, jnp.zeros((1, 2)), -G])
    right = jnp.array([1.0, 2.0, 0.0, 50.0])
    assert_allclose(project(x, more, right), project(x, G, h), rtol=1e-12)


@pytest.mark.parametrize(
    ("G", "h", "A", "b"),
    [
        ([[1.0, 0.0], [-1.0, 0.0]], [-1.0, -1.0], None, None),
        ([[0.0, 0.0]], [-1.0], None, None),
        ([[1.0, 0.0]], [5.0], [[1.0, 1.0], [1.0, 1.0]], [0.0, 1.0]),
    ],
)
def test_an_empty_set_gives_nan(G, h, A, b):
    """Oracle: by hand."""
    args = [None if a is None else jnp.array(a) for a in (G, h, A, b)]
    assert jnp.all(jnp.isnan(project(jnp.array([3.0, 1.0]), *args)))


def test_float32_and_bfloat16_work(rng):
    """Oracle: float64."""
    G, h, _, _ = random_polyhedron(rng, 4, 6, 0)
    x = 5 * rng.normal(size=4)
    exact = project(*map(jnp.asarray, (x, G, h)))
    single = project(*(jnp.asarray(a, jnp.float32) for a in (x, G, h)))
    assert single.dtype == jnp.float32
    assert_allclose(single, exact, rtol=1e-4, atol=1e-5)
    half = project(jnp.ones(2, jnp.bfloat16), jnp.ones((1, 2)), jnp.ones(1))
    assert half.dtype == jnp.bfloat16
    assert_allclose(half.astype(jnp.float32), [0.5, 0.5])


def test_projected_gradient_over_a_polyhedron_is_differentiable(rng):
    """Oracle: the derivative of a quadratic program by its KKT equations, dense."""
    G, h, _, _ = map(jnp.asarray, random_polyhedron(rng, 3, 5, 0))
    Q = jnp.asarray(np.diag([1.0, 2.0, 4.0]))

    def objective(y, c):
        return 0.5 * y @ Q @ y - c @ y

    mapping = ok.optimality.projected_gradient(
        objective, lambda v, c: ok.projections.polyhedron(v, G, h), 0.25
    )
    c = jnp.asarray([2.0, -1.0, 3.0])
    y = jax.lax.fori_loop(0, 400, lambda _, y: mapping(y, c), jnp.zeros(3))
    dy, dc = jax.jit(jax.jacrev(mapping, argnums=(0, 1)))(y, c)
    got = jnp.linalg.solve(jnp.eye(3) - dy, dc)
    active = jnp.abs(G @ y - h) < 1e-9
    assert 1 <= active.sum() < 3
    M = np.asarray(G)[np.asarray(active)]
    K = np.block([[np.asarray(Q), M.T], [M, np.zeros((len(M), len(M)))]])
    assert_allclose(got, np.linalg.inv(K)[:3, :3], atol=1e-9)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: project(jnp.ones(3), jnp.ones((2, 2)), jnp.ones(2)), "G of"),
        (lambda: project(jnp.ones(2), jnp.ones((1, 2)), jnp.ones(1), jnp.ones((1, 2))),
         "both A and b"),
        (lambda: ok.projections.affine_set(jnp.ones(3), jnp.ones((2, 3)), jnp.ones(3)),
         "b of"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(call, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        call()
