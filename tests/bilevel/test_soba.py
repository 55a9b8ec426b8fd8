import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from precision import X64, assert_allclose

import optkit as ok
from benchmarks.problems import hypergradient, rows, simulated


def quadratic(x, y, batch):
    return batch.mean(x, y)


@pytest.fixture(scope="module")
def problem():
    seed = 0 if X64 else 1  # with a minimum, in either precision
    return simulated(key=jax.random.key(seed), num=64, dim_x=5, dim_y=8)


def numpy_rows(examples, index):
    return jax.tree.map(np.asarray, rows(examples, index))


@pytest.mark.usefixtures("standard_promotion")
def test_twenty_steps_of_the_paper(problem, rng):
    """Oracle: NumPy transcription, with decreasing steps and separate batches."""
    draws = rng.integers(0, 64, (20, 2, 4))
    x, y = rng.normal(size=5), rng.normal(size=8)

    def rho(k):
        return 0.3 / (k + 1) ** 0.5

    def gamma(k):
        return 0.1 / (k + 1) ** 0.5

    solver = ok.bilevel.soba(
        quadratic, quadratic, outer=optax.sgd(gamma), inner=optax.sgd(rho)
    )
    state, _ = ok.run(
        solver,
        solver.init(x, y),
        (
            ok.bilevel.Batches(
                upper_x=rows(problem.upper, i), lower_x=rows(problem.lower, j)
            )
            for i, j in draws
        ),
        20,
    )
    expected = oracles.soba(
        x,
        y,
        np.zeros(8),
        [numpy_rows(problem.upper, i) for i, _ in draws],
        [numpy_rows(problem.lower, j) for _, j in draws],
        rho,
        gamma,
    )
    for got, want in zip((state.x, state.y, state.v), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)


def test_fixed_point_is_the_minimum_and_info_says_so(problem):
    """Oracle: the hypergradient in closed form."""
    least = 1e-12 if X64 else 1e-5
    solver = ok.bilevel.soba(
        quadratic, quadratic, outer=optax.sgd(0.3), inner=optax.sgd(0.5)
    )
    batch = ok.bilevel.Batches(upper_x=problem.upper, lower_x=problem.lower)
    state, history = ok.run(
        solver, solver.init(jnp.zeros(5), jnp.zeros(8)), lambda k: batch, 8000
    )
    assert_allclose(hypergradient(problem, state.x), np.zeros(5), atol=1e-12)
    assert np.all(history.result == ok.RESULTS.successful)
    assert history.residual_norm[-1] < least
    assert history.linear_residual[-1] < least
    assert history.hypergradient_norm[-1] < least
    g, f = problem.lower, problem.upper
    F_x, F_y = oracles.QuadraticSlopes.first(state.x, state.y, f)
    H = g.a.T @ g.a / 64
    assert_allclose(state.v, -np.linalg.solve(H, F_y), rtol=1e-9, float32=1e-4)
    del F_x


@pytest.mark.usefixtures("standard_promotion")
def test_the_linear_system_may_have_its_own_transform(problem):
    """Oracle: v after one step from zero is minus its step size times ∇_y F."""
    solver = ok.bilevel.soba(
        quadratic,
        quadratic,
        outer=optax.adam(0.1),
        inner=optax.adam(0.1),
        linear=optax.sgd(0.25),
    )
    x, y = jnp.ones(5), jnp.ones(8)
    batch = ok.bilevel.Batches(upper_x=problem.upper, lower_x=problem.lower)
    state, _ = solver.step(solver.init(x, y), batch)
    _, F_y = oracles.QuadraticSlopes.first(x, y, problem.upper)
    assert_allclose(state.v, -0.25 * F_y, rtol=1e-12)
    assert_allclose(jnp.abs(state.x - x), 0.1, rtol=1e-6)


def test_both_constraint_sets_hold_after_every_step(problem):
    """Oracle: the sets."""
    solver = ok.bilevel.soba(
        quadratic,
        quadratic,
        outer=optax.sgd(0.3),
        inner=optax.sgd(0.5),
        project_x=lambda x: jnp.clip(x, -0.01, 0.01),
        project_y=lambda y: jnp.clip(y, -0.02, 0.02),
    )
    state = solver.init(jnp.zeros(5), jnp.zeros(8))
    batch = ok.bilevel.Batches(upper_x=problem.upper, lower_x=problem.lower)
    for _ in range(20):
        state, info = solver.step(state, batch)
    assert_allclose(jnp.max(jnp.abs(state.x)), 0.01, rtol=0, atol=0)
    assert_allclose(jnp.max(jnp.abs(state.y)), 0.02, rtol=0, atol=0)
    assert info.residual_norm < 1  # of the projected step


def test_memory_is_three_variables():
    """Oracle: a count of the numbers in the state."""
    solver = ok.bilevel.soba(
        quadratic, quadratic, outer=optax.sgd(0.1), inner=optax.sgd(0.1)
    )
    state = solver.init(jnp.zeros(5), jnp.zeros(8))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == 5 + 2 * 8 + 1


@pytest.mark.parametrize("size", [1e20, 1.0, 1e-25])
def test_the_linear_residual_does_not_depend_on_the_scale(size):
    """Oracle: 1 at v = 0, for |∇_y F| whose square leaves the range of float32."""
    solver = ok.bilevel.soba(
        lambda x, y, batch: jnp.sum(size * y),
        lambda x, y, batch: jnp.sum((y - x) ** 2) / 2,
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.1),
    )
    zero = jnp.zeros(3, jnp.float32)
    _, info = solver.step(solver.init(zero, zero), None)
    assert_allclose(info.linear_residual, 1.0, rtol=1e-6)
