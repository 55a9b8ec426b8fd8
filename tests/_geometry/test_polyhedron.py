"""Affine sets and polyhedra: against every active set, tried in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import X64, assert_allclose
from problems import assert_derivatives
from scipy.linalg import null_space
from scipy.optimize import linprog, nnls

import optkit as ok

TINY = 1e-9 if X64 else 1e-5

project = jax.jit(ok.projections.polyhedron)


def nearest_by_enumeration(x, G, h, A, b):
    """The projection onto the set of equations that satisfies KKT, by enumeration."""
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
    """A polyhedron around a point, so not empty."""
    G, A, inside = rng.normal(size=(k, n)), rng.normal(size=(m, n)), rng.normal(size=n)
    return G, G @ inside + rng.uniform(0, 0.5, k), A, A @ inside


many = jax.jit(jax.vmap(ok.projections.polyhedron))


@pytest.mark.parametrize("m", [0, 1])
def test_the_projection_is_that_of_the_right_active_set(rng, m):
    """Oracle: enumeration; points near and far, under vmap."""
    G, h, A, b = random_polyhedron(rng, 4, 6, m)
    x = 10.0 ** rng.uniform(-2, 4, (40, 1)) * rng.normal(size=(40, 4))
    expected = [nearest_by_enumeration(point, G, h, A, b) for point in x]
    sets = [np.broadcast_to(a, (40, *a.shape)) for a in (G, h, A, b)]
    p = many(x, *map(jnp.asarray, sets if m else sets[:2]))
    scale = np.linalg.norm(x, axis=1)
    assert np.max(np.abs(p - np.array(expected)).max(1) / scale) < (
        1e-12 if X64 else 1e-5
    )


@pytest.mark.x64
def test_random_polyhedra_are_solved_in_both_precisions(rng):
    """Oracle: KKT, x - p a non-negative combination of active rows; float64."""
    x = 10.0 ** rng.uniform(-2, 3, (30, 1)) * rng.normal(size=(30, 10))
    sets = [random_polyhedron(rng, 10, 30, 3) for _ in x]
    args = x, *(np.stack(arrays) for arrays in zip(*sets, strict=True))
    exact, single = (
        np.asarray(many(*(jnp.asarray(a, dtype) for a in args)), np.float64)
        for dtype in (jnp.float64, jnp.float32)
    )
    scale = 1 + np.linalg.norm(x, axis=1)
    for point, p, p32, size, (G, h, A, b) in zip(
        x, exact, single, scale, sets, strict=True
    ):
        active = G @ p > h - 1e-9
        normals = np.concatenate([A, -A, G[active]]).T
        assert nnls(normals, point - p)[1] < 1e-13 * size
        for q, tolerance in ((p, 1e-13), (p32, 1e-5)):
            assert np.max(G @ q - h) < tolerance * size
            assert np.max(np.abs(A @ q - b)) < tolerance * size
    assert np.max(np.abs(single - exact).max(1) / scale) < 1e-5


def test_all_derivatives_of_a_polyhedron_are_right(rng, key):
    """Oracle: central differences in x, G, h, A and b together."""
    G, h, A, b = map(jnp.asarray, random_polyhedron(rng, 4, 6, 1))
    x = jnp.asarray(10 * rng.normal(size=4))
    p = project(x, G, h, A, b)
    assert 1 <= jnp.sum(jnp.abs(G @ p - h) < TINY) < 4
    assert_derivatives(ok.projections.polyhedron, (x, G, h, A, b), key)


NO = [0, 0]
FREE = [1, 1, 1, 1]
DEGENERATE = {  # name: (x, G, h, A, b, p), four inequalities and two equations in 2D
    "inside": ([0.5, -2.0], [[1, 0], [0, 1], NO, NO], FREE, [NO, NO], NO, [0.5, -2.0]),
    "on the edge": ([1.0, 0.0], [[1, 0], [1, 0], [2, 0], NO], [1, 1, 2, 0], [NO, NO],
                    NO, [1.0, 0.0]),
    "no bound": ([2.0, 1.0], [[1, 1], [1, 0], NO, NO], [1, np.inf, 1, 0], [NO, NO], NO,
                 [1.0, 0.0]),
    "repeated and useless": ([2.0, 1.5], [[1, 1], [2, 2], NO, [-1, -1]], [1, 2, 0, 50],
                             [NO, NO], NO, [0.75, 0.25]),
    "an apex": ([3.0, 1.0], [[1, 1], [1, -1], [1, 0], [1, 0.5]], [0, 0, 0, 0], [NO, NO],
                NO, NO),
    "a far apex": ([300.0, 1.7], [[1, 1], [1, -1], [1, 0], [1, 0.5]], [0, 0, 0, 0],
                   [NO, NO], NO, NO),
    "a vertex of all": ([5.0, 7.0], [[1, 0], [0, 1], [1, 1], [3, 2]], [1, 2, 3, 7],
                        [NO, NO], NO, [1.0, 2.0]),
    "a slab without inside": ([3.0, 1.0], [[1, 2], [-1, -2], [2, 4], NO], [2, -2, 4, 0],
                              [NO, NO], NO, [2.4, -0.2]),
    "implied equations": ([0.0, 0.0], [[1, 1], [-1, 0], [0, -1], NO], [2, 0, 0, 0],
                          [[1, 1], [2, 2]], [2, 4], [1.0, 1.0]),
    "one point": ([9.0, 9.0], [[1, 0], [-1, 0], [0, 1], [0, -1]], FREE,
                  [[1, 0], [0, 1]], [1, -1], [1.0, -1.0]),
    "parallel and apart": ([3.0, 1.0], [[1, 0], [-1, 0], NO, NO], [-1, -1, 0, 0],
                           [NO, NO], NO, None),
    "0 <= -1": ([3.0, 1.0], [[1, 0], NO, NO, NO], [5, -1, 0, 0], [NO, NO], NO, None),
    "equations apart": ([3.0, 1.0], [[1, 0], NO, NO, NO], [5, 0, 0, 0],
                        [[1, 1], [1, 1]], [0, 1], None),
    "a triangle apart": ([0.0, 0.0], [[1, 1], [-1, 0], [0, -1], NO], [-1, 0, 0, 0],
                         [NO, NO], NO, None),
}  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float64, marks=pytest.mark.x64), jnp.float32]
)
def test_degenerate_sets_do_no_harm_and_empty_ones_give_nan(dtype):
    """Oracle: by hand."""
    *args, _ = (
        jnp.asarray(np.array(column, float), dtype)
        for column in zip(*([*v[:5], 0] for v in DEGENERATE.values()), strict=True)
    )
    for name, *row in zip(DEGENERATE, *args, strict=True):
        x, *_, expected = DEGENERATE[name]
        p = project(*row)
        if expected is None:
            assert jnp.all(jnp.isnan(p)), name
        else:
            atol = 8 * float(jnp.finfo(dtype).eps) * (1 + float(np.linalg.norm(x)))
            assert_allclose(p, expected, rtol=0, atol=atol, err_msg=name)


def test_an_affine_set_may_have_dependent_rows(rng, key):
    """Oracle: the normal equations of independent rows; central differences."""
    A, x = jnp.asarray(rng.normal(size=(2, 5))), jnp.asarray(rng.normal(size=5))
    b = jnp.asarray(rng.normal(size=2))
    affine_set = jax.jit(ok.projections.affine_set)
    p = affine_set(x, A, b)
    assert_allclose(p, x - A.T @ jnp.linalg.solve(A @ A.T, A @ x - b), rtol=1e-12)
    assert_derivatives(ok.projections.affine_set, (x, A, b), key)
    twice, both = jnp.concatenate([A, 3 * A[:1]]), jnp.concatenate([b, 3 * b[:1]])
    assert_allclose(affine_set(x, twice, both), p, rtol=1e-12)
    # The projection is 0, so nothing hides the residual.
    through_0 = affine_set(twice[2], twice[2:], jnp.zeros(1))
    assert_allclose(through_0, np.zeros(5), atol=1e-15)


def test_an_affine_set_has_second_derivatives(rng, key):
    """Oracle: central differences of the gradient."""
    A, x = jnp.asarray(rng.normal(size=(2, 4))), jnp.asarray(rng.normal(size=4))

    def f(A):
        return jnp.sum(ok.projections.affine_set(x, A, jnp.ones(2)) ** 3)

    assert_derivatives(jax.grad(f), (A,), key, tolerance=1e-7)


def test_points_inside_move_with_derivative_one():
    """Oracle: the identity."""
    x = jnp.array([0.5, -2.0, 0.9])
    jacobian = jax.jit(jax.jacfwd(ok.projections.polyhedron))
    assert_allclose(jacobian(x, jnp.eye(3), jnp.ones(3)), np.eye(3))


LINE = [[0.5, -0.5], [-0.5, 0.5]]
ZERO = [NO, NO]
FACES = {  # name: (x, G, h, the Jacobian in x)
    "a point of a line": ([0.25, 0.75], [[1, 1], [-1, -1], NO], [1, -1, 0], LINE),
    "the line, seen from one side": ([1, 1], [[1, 1], [-1, -1], NO], [1, -1, 0], LINE),
    "a line of three rows": ([0.5, 0.5], [[1, 1], [2, 2], [-1, -1]], [1, 2, -1], LINE),
    "a line that is nearly a slab": ([0.25, 0.75], [[1, 1], [-1, -1], NO],
                                     [1 + 1e-3, -1, 0], np.eye(2)),
    "a half-line": ([-1, 0], [[1, 0], [0, 1], [0, -1]], [0, 0, 0], np.diag([1, 0])),
    "the end of a half-line": ([0, 0], [[1, 0], [0, 1], [0, -1]], [0, 0, 0],
                               np.diag([1, 0])),
    "beyond its end": ([1, 3], [[1, 0], [0, 1], [0, -1]], [0, 0, 0], ZERO),
    "a triangle without inside": ([0, 0], [[1, 1], [-1, 0], [0, -1]], [0, 0, 0], ZERO),
    "an apex, one row violated": ([1, 0], [[1, 0], [1, 1], [1, -1]], [0, 0, 0], ZERO),
    "an apex, x on a normal": ([1, 1], [[1, 0], [1, 1], [1, -1]], [0, 0, 0], LINE),
    "an apex, x on it": ([0, 0], [[1, 0], [1, 1], [1, -1]], [0, 0, 0], np.eye(2)),
    "a useless row through p": ([2, 0], [[1, 0], [1, 0], NO], [1, 1, 0],
                                np.diag([0, 1])),
}  # fmt: skip


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float64, marks=pytest.mark.x64), jnp.float32]
)
def test_the_jacobian_is_the_projection_onto_the_directions_of_a_face(dtype):
    """Oracle: by hand; both modes. At a kink, rows that do not hold p are left out."""
    *args, _ = (
        jnp.asarray(np.array(column, float), dtype)
        for column in zip(*FACES.values(), strict=True)
    )
    for mode in (jax.jacfwd, jax.jacrev):
        jacobians = jax.jit(jax.vmap(mode(ok.projections.polyhedron)))(*args)
        for (name, row), found in zip(FACES.items(), jacobians, strict=True):
            atol = 20 * float(jnp.finfo(dtype).eps)
            assert_allclose(found, row[-1], rtol=0, atol=atol, err_msg=name)


def directions(x, p, G, h, A):
    """The projector onto the span of the critical cone, and whether that is linear."""
    tight = np.abs(G @ p - h) < 1e-9 * (1 + np.linalg.norm(x))
    equations = np.concatenate([A, (x - p)[None] * (np.linalg.norm(x - p) > 1e-9)])
    held = []
    for row in G[tight]:
        least = linprog(row, G[tight], np.zeros(tight.sum()), equations,
                        np.zeros(len(equations)), bounds=(-1, 1)).fun  # fmt: skip
        held += [row] if least > -1e-6 else []
    basis = null_space(np.concatenate([equations, *[row[None] for row in held]]), 1e-4)
    return basis @ basis.T, len(held) == tight.sum()


@pytest.mark.x64
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_faces_of_degenerate_polyhedra_are_found(rng, scale):
    """Oracle: the implied equations by linear programming; both precisions."""
    num, G = 100, rng.integers(-1, 2, (100, 6, 3)).astype(float)
    h = rng.integers(0, 2, (num, 6)) * (rng.random((num, 1)) < 0.6).astype(float)
    G[::3, 5], h[::3, 5] = -G[::3, 0], -h[::3, 0]
    A, b = rng.integers(-1, 2, (num, 1, 3)) * (rng.random((num, 1, 1)) < 0.3), 0 * h
    x = scale * rng.integers(-2, 3, (num, 3)).astype(float)
    Q = np.linalg.qr(rng.normal(size=(num, 3, 3)))[0]  # so that entries are not exact
    x, G, A = np.einsum("nij,nj->ni", Q, x), G @ Q.mT, A @ Q.mT
    args = x, G, h, A, b[:, :1]

    def both(*args):
        p = ok.projections.polyhedron(*args)
        return p, jax.jacfwd(ok.projections.polyhedron)(*args)

    both = jax.jit(jax.vmap(both))
    exact, jacobians = map(np.asarray, both(*map(jnp.asarray, args)))
    single = both(*(jnp.asarray(a, jnp.float32) for a in args))[1]
    num_smooth = 0
    for i in np.flatnonzero(~np.isnan(exact[:, 0])):
        want, is_smooth = directions(x[i], exact[i], G[i], h[i], A[i])
        num_smooth += is_smooth
        if is_smooth:
            assert_allclose(jacobians[i], want, rtol=0, atol=1e-9, err_msg=str(i))
            assert_allclose(single[i], want, rtol=0, atol=1e-4, err_msg=str(i))
        else:  # an orthogonal projector onto directions of the cone
            assert_allclose(jacobians[i] @ want, jacobians[i], atol=1e-9)
            assert_allclose(jacobians[i] @ jacobians[i], jacobians[i], atol=1e-9)
    assert 60 < num_smooth < 100


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_the_size_of_the_equations_does_not_matter(size):
    """Oracle: the line x + y = 1, in units whose squares leave float32."""
    x, G = jnp.array([2.0, 1.0], jnp.float32), jnp.full((1, 2), size, jnp.float32)
    h = jnp.full(1, size, jnp.float32)
    half = np.array([[0.5, -0.5], [-0.5, 0.5]])
    for project in (ok.projections.polyhedron, ok.projections.affine_set):
        assert_allclose(project(x, G, h), (1.0, 0.0), atol=1e-6)
        assert_allclose(jax.jacobian(project)(x, G, h), half, atol=1e-6)
        moved = jax.jacobian(project, argnums=2)(x, G, h)[:, 0]
        assert_allclose(moved * size, (0.5, 0.5), atol=1e-6)


def test_bfloat16_works():
    """Oracle: by hand."""
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
    step, y = jax.jit(mapping), jnp.zeros(3)
    for _ in range(100):
        y = step(y, c)
    dy, dc = jax.jit(jax.jacrev(mapping, argnums=(0, 1)))(y, c)
    got = jnp.linalg.solve(jnp.eye(3) - dy, dc)
    active = jnp.abs(G @ y - h) < TINY
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
         r"A of shape \(3, 3\), got \(2, 3\)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(call, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        call()
