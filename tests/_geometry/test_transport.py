"""Transport polytopes: against quadratic programs and plain Sinkhorn iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import X64, assert_allclose
from problems import assert_derivatives
from scipy.optimize import linprog

import optkit as ok

transport = jax.jit(ok.projections.transport)
kl_transport = jax.jit(ok.projections.kl_transport)
both = pytest.mark.parametrize("project", [transport, kl_transport])


def marginals(rng, a, b):
    """The sums of a positive matrix with total 1."""
    P = rng.uniform(0.1, 1.0, (a, b))
    return jnp.asarray(P.sum(1) / P.sum()), jnp.asarray(P.sum(0) / P.sum())


def sinkhorn(x, r, c, steps):
    """NumPy transcription: scale rows, then columns, in turn."""
    K, u, v = np.exp(np.asarray(x)), np.ones(len(r)), np.ones(len(c))
    for _ in range(steps):
        u = np.asarray(r) / (K @ v)
        v = np.asarray(c) / (K.T @ u)
    return u[:, None] * K * v


def constraints(r, c):
    """(A, b) with A vec(P) = b for the sums of P."""
    a, b = len(r), len(c)
    A = np.concatenate([np.kron(np.eye(a), np.ones(b)), np.kron(np.ones(a), np.eye(b))])
    return jnp.asarray(A), jnp.concatenate([r, c])


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_a_plan_is_the_projection_onto_a_polyhedron(rng, scale):
    """Oracle: `polyhedron`, itself tested by enumeration, on vec(P)."""
    r, c = marginals(rng, 3, 4)
    x = jnp.asarray(scale * rng.normal(size=(3, 4)))
    A, b = constraints(r, c)
    expected = jax.jit(ok.projections.polyhedron)(
        x.ravel(), -jnp.eye(12), jnp.zeros(12), A, b
    )
    assert_allclose(transport(x, r, c).ravel(), expected, atol=1e-13 * max(1, scale))


def best_value(cost, r, c):
    """The largest <cost, Q> over all Q >= 0 with those sums, by linear programming."""
    A, b = constraints(r, c)
    return -linprog(-cost.ravel(), A_eq=A, b_eq=b, method="highs").fun


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
def test_a_plan_satisfies_its_optimality_conditions_at_every_scale(rng, scale):
    """Oracle: sums, signs, <x - P, Q - P> <= 0 for the best Q; both precisions."""
    for r, c in (marginals(rng, 20, 20), (jnp.ones(20), jnp.ones(20))):
        x = jnp.asarray(scale * rng.normal(size=(20, 20)))
        P = np.asarray(transport(x, r, c))
        single = np.asarray(transport(*(a.astype(jnp.float32) for a in (x, r, c))))
        for plan, rtol in ((P, 1e-13 if X64 else 2e-6), (single, 2e-6)):
            assert plan.min() >= 0
            assert_allclose(plan.sum(1), r, rtol=rtol)
            assert_allclose(plan.sum(0), c, rtol=rtol)
            cost = np.asarray(x) - plan
            size = scale * float(r.sum())
            assert best_value(cost, r, c) - np.sum(cost * plan) <= rtol * size


def test_the_only_plan_of_one_row_is_the_column_sums(rng):
    """Oracle: by hand."""
    _, c = marginals(rng, 1, 5)
    x = jnp.asarray(rng.normal(size=(1, 5)))
    assert_allclose(transport(x, jnp.ones(1), c)[0], c, rtol=1e-14)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_a_kl_plan_is_the_limit_of_sinkhorn(rng, scale):
    """Oracle: 20,000 iterations in NumPy."""
    r, c = marginals(rng, 3, 4)
    x = jnp.asarray(scale * rng.normal(size=(3, 4)))
    expected = sinkhorn(x, r, c, 20_000)
    assert_allclose(kl_transport(x, r, c), expected, rtol=1e-11, atol=1e-15)


def test_a_kl_plan_converges_where_sinkhorn_does_not(rng):
    """Oracle: the sums, and x - log P = -(α + β), at costs 300 times the entropy."""
    r, c = marginals(rng, 20, 30)
    x = jnp.asarray(300 * rng.normal(size=(20, 30)))
    P = np.asarray(kl_transport(x, r, c))
    assert_allclose(P.sum(1), r, rtol=1e-10)
    assert_allclose(P.sum(0), c, rtol=1e-10)


@both
def test_first_and_second_derivatives_are_right(project, rng, key):
    """Oracle: central differences, the sums parametrised so that they agree."""
    r, c = marginals(rng, 2, 3)
    x = jnp.asarray(0.3 * rng.normal(size=(2, 3)))

    def f(x, r, c):
        plan = project(x, r / r.sum(), c / c.sum())
        return jnp.sum(plan**3), plan

    assert_derivatives(jax.grad(f, argnums=(0, 1, 2), has_aux=True), (x, r, c), key)


def test_birkhoff_finds_permutations_and_keeps_doubly_stochastic_matrices(rng):
    """Oracle: 50 P plus noise projects to the permutation P; members to themselves."""
    permutation = jnp.eye(5)[rng.permutation(5)]
    x = 50 * permutation + jnp.asarray(rng.normal(size=(5, 5)))
    birkhoff = jax.jit(ok.projections.birkhoff)
    assert_allclose(birkhoff(x), permutation, atol=1e-12)
    inside = 0.5 * permutation + 0.1
    assert_allclose(birkhoff(inside), inside, atol=1e-14)
    x = jnp.asarray(rng.normal(size=(5, 5)))
    kl = jax.jit(ok.projections.kl_birkhoff)(x)
    assert_allclose(kl, sinkhorn(x, np.ones(5), np.ones(5), 5000), rtol=1e-11)


@both
def test_vmap_equals_a_loop_and_float32_works(project, rng):
    """Oracle: one at a time; float64."""
    r, c = marginals(rng, 3, 4)
    x = jnp.asarray(rng.normal(size=(4, 3, 4)))
    plans = jax.jit(jax.vmap(project, (0, None, None)))(x, r, c)
    single = project(*(a.astype(jnp.float32) for a in (x[0], r, c)))
    for one, plan in zip(x, plans, strict=True):
        assert_allclose(plan, project(one, r, c), atol=1e-15)
    assert single.dtype == jnp.float32
    assert_allclose(single, plans[0], atol=1e-6)


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float64, marks=pytest.mark.x64), jnp.float32]
)
@both
def test_sums_that_disagree_or_are_negative_give_nan(project, dtype):
    """Oracle: by hand."""
    x, r, c = jnp.zeros((3, 4), dtype), jnp.ones(3, dtype), jnp.full(4, 0.75, dtype)
    assert jnp.all(jnp.isnan(project(x, r, c + 0.1)))
    assert jnp.all(jnp.isnan(project(x, r, jnp.array([3.5, -0.5, 0, 0], dtype))))
    assert jnp.all(jnp.isnan(project(x.at[0, 0].set(jnp.nan), r, c)))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda: transport(jnp.ones((2, 3)), jnp.ones(3), jnp.ones(2)),
            r"x of shape \(3, 2\)",
        ),
        (lambda: ok.projections.birkhoff(jnp.ones((2, 3))), "square"),
    ],
)
def test_shapes_that_do_not_fit_are_named(call, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        call()


def test_a_long_step_does_not_round_the_point_away():
    """Oracle: closed form, t = clip((tr x - the others + 2) / 4) on the diagonal."""
    x = jnp.array([[0.33656135, -0.5482852], [-1.3103614, -0.1572349]], jnp.float32)
    assert_allclose(ok.projections.birkhoff(x), np.eye(2), atol=1e-6)
