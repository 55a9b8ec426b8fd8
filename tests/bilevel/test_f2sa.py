import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from precision import X64, assert_allclose
from problems import (
    Q2_A,
    Q2_B,
    Q2_C,
    Q2_T,
    Q2_X,
    noisy_lower,
    noisy_sample,
    noisy_upper,
    q2_hypergradient,
    q2_lower,
    q2_upper,
)

import optkit as ok

# Stores the gradient in `state.outer`, and does not move x.
FROZEN = optax.chain(optax.trace(0.0), optax.scale(0.0))
CONSTANTS = ok.bilevel.Constants(convexity=0.79289322, lower=3.38218872, upper=1.0)


def scan(solver, state, num_steps):
    return jax.jit(
        lambda state: jax.lax.scan(
            lambda s, _: solver.step(s, None), state, None, num_steps
        )
    )(state)


def penalised_hypergradient(x, penalty):
    """The gradient of min_y [f + λ g] - λ min_z g for Q2, in closed form."""
    right = Q2_B @ x + Q2_C
    y = jnp.linalg.solve(jnp.eye(2) + penalty * Q2_A, Q2_T + penalty * right)
    return 0.1 * x + penalty * Q2_B.T @ (jnp.linalg.solve(Q2_A, right) - y)


@pytest.mark.parametrize(
    ("penalty", "expected"),
    [(10.0, (3.17679612, 1.589681)), (100.0, (3.51362676, 1.77731363))],
)
def test_hypergradient_at_a_fixed_penalty_is_biased_by_one_over_it(penalty, expected):
    # Oracle: closed form, and the fixture's numbers.
    solver = ok.bilevel.f2sa(
        q2_upper,
        q2_lower,
        outer=FROZEN,
        inner=optax.sgd(0.4),
        penalty=penalty,
        inner_steps=300,
    )
    state, info = solver.step(solver.init(Q2_X, jnp.zeros(2)), None)
    closed = penalised_hypergradient(Q2_X, penalty)
    assert_allclose(state.outer[0].trace, closed, rtol=1e-12, float32=1e-6 * penalty)
    assert_allclose(closed, expected, rtol=0, atol=5e-9, float32=1e-6 * penalty)
    assert_allclose(
        info.hypergradient_norm, np.linalg.norm(state.outer[0].trace), rtol=1e-12
    )
    assert info.penalty == penalty
    assert info.residual_norm < (1e-12 if X64 else 1e-5)
    assert_allclose(info.value, q2_upper(Q2_X, state.y), rtol=1e-14)
    assert_allclose(info.lower, q2_lower(Q2_X, state.y), rtol=1e-14)


@pytest.mark.x64
def test_bias_times_penalty_tends_to_its_constant():
    # Oracle: closed form; the fixture's 4.87 is at λ = 1e3, the limit 4.88.
    def scaled(penalty):
        error = penalised_hypergradient(Q2_X, penalty) - q2_hypergradient(Q2_X)
        return penalty * jnp.linalg.norm(error)

    assert_allclose(scaled(1e3), 4.87, atol=0.01)
    assert_allclose(scaled(1e5), scaled(1e6), rtol=1e-4)


def test_twenty_steps_are_those_of_the_paper(rng):
    # Oracle: NumPy transcription, with a separate sample for every gradient.
    T, num_steps = 3, 20
    schedule = ok.bilevel.PenaltySchedule(
        a=5 / 7, c=4 / 7, c_alpha=0.1, c_gamma=0.6, k0=3.0, initial_penalty=2.0,
        growth=0.4, target=0.5, ratio=0.8, inner_steps=T,
    )  # fmt: skip
    samples = [
        ok.bilevel.Batches(
            upper_x=noisy_sample(rng),
            upper_y=noisy_sample(rng, T),
            lower_x=noisy_sample(rng),
            lower_y=noisy_sample(rng, T),
            lower_z=noisy_sample(rng, T),
        )
        for _ in range(num_steps)
    ]
    x, y = rng.normal(size=3), rng.normal(size=2)

    def alpha(k):
        return 0.1 / (k + 3.0) ** (5 / 7)

    def gamma(k):
        return 0.6 / (k + 3.0) ** (4 / 7)

    def delta(k, penalty):
        return min(0.4 * alpha(k) * penalty**2, gamma(k) / (2 * alpha(k)) - penalty)

    *expected, penalty = oracles.f2sa(
        oracles.NoisyQuadratic, x, y, y, samples, T, alpha, gamma, delta, 2.0, 0.8
    )
    solver = ok.bilevel.f2sa(noisy_upper, noisy_lower, schedule=schedule)
    state = solver.init(x, y)
    for sample in samples:
        state, _ = solver.step(state, sample)
    for got, want in zip((state.x, state.y, state.z), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)
    assert_allclose(state.penalty, penalty, rtol=1e-12)


def run_schedule(schedule, *num_steps):
    """|∇Φ|² and λ after the given numbers of steps, and all results."""
    solver = ok.bilevel.f2sa(q2_upper, q2_lower, schedule=schedule)

    @jax.jit
    def run(state):
        def step(state, _):
            squared = jnp.sum(q2_hypergradient(state.x) ** 2)
            new, info = solver.step(state, None)
            return new, (squared, state.penalty, info.result)

        return jax.lax.scan(step, state, None, 1 + max(num_steps))[1]

    squared, penalty, result = run(solver.init(jnp.zeros(2), jnp.zeros(2)))
    at = np.array(num_steps)
    return squared[at], penalty[at], result


EXACT = ok.bilevel.f2sa_schedule(
    CONSTANTS, inner_steps=10, noisy_upper=False, noisy_lower=False
)


def test_exact_schedule_converges_slowly_within_its_bounds():
    # Oracle: known figures of the exact schedule, from x = 0.
    squared, penalty, result = run_schedule(EXACT, 1_000, 10_000)
    assert_allclose(squared, (9.17e-2, 1.58e-3), rtol=3e-3)
    assert_allclose(penalty, (4.79, 9.85), rtol=1e-3)
    assert jnp.all(result == ok.RESULTS.successful)


def test_tuned_schedule_converges_faster_and_reports_that_it_leaves_the_bounds():
    # Oracle: the known figure of the tuned schedule.
    tuned = dataclasses.replace(
        EXACT, k0=5.0, c_alpha=0.05, c_gamma=0.4, initial_penalty=3.0
    )
    squared, _, result = run_schedule(tuned, 10_000)
    assert_allclose(squared, 1.5e-6, atol=0.05e-6)
    assert jnp.all(result == ok.RESULTS.schedule_bounds)


def test_step_stays_stable_while_the_penalty_grows():
    # Oracle: closed form of the minimiser, with one step size for y throughout.
    solver = ok.bilevel.f2sa(
        q2_upper,
        q2_lower,
        outer=optax.sgd(0.03),
        inner=optax.sgd(0.8),
        penalty=lambda k: 1.0 + 0.5 * k.astype(float),
        inner_steps=40,
    )
    state, info = scan(solver, solver.init(Q2_X, jnp.zeros(2)), 4_000)
    assert_allclose(state.x, (0.04184167, -0.90007132), atol=3e-3)
    assert jnp.all(info.result == ok.RESULTS.successful)


def test_projections_hold_both_variables_at_their_bounds():
    # Oracle: closed form. With y in [0, 0.2] and x in [0.5, 1]: y* = 0.2, ∇Φ = 0.1 x.
    solver = ok.bilevel.f2sa(
        lambda x, y, b: 0.5 * jnp.sum((y - 1) ** 2) + 0.05 * jnp.sum(x**2),
        lambda x, y, b: 0.5 * jnp.sum((y - x) ** 2),
        outer=optax.sgd(1.0),
        inner=optax.sgd(0.5),
        penalty=10.0,
        inner_steps=5,
        project_x=lambda x: jnp.clip(x, 0.5, 1.0),
        project_y=lambda y: jnp.clip(y, 0.0, 0.2),
    )
    state, info = scan(solver, solver.init(jnp.ones(2), jnp.zeros(2)), 30)
    np.testing.assert_array_equal(state.x, 0.5)
    np.testing.assert_array_equal((state.y, state.z), jnp.asarray(0.2))
    assert info.residual_norm[-1] == 0
