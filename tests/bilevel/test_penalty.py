import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from precision import assert_allclose
from problems import noisy_lower, noisy_sample, noisy_upper

import optkit as ok

# Stores the gradient in `state.outer`, and does not move x.
FROZEN = optax.chain(optax.trace(0.0), optax.scale(0.0))


def follows(x, y, batch):
    """Minimal at y = x."""
    return 0.5 * jnp.sum((y - x) ** 2)


def wants_one(x, y, batch):
    return 0.5 * jnp.sum((y - 1) ** 2)


def hypergradient(upper, lower, x, y, *, num_steps=1, step_size=0.5, **options):
    """The gradient of x, once everything except x has converged."""
    solver = ok.bilevel.penalty(
        upper, lower, outer=FROZEN, inner=optax.sgd(step_size), **options
    )
    state, info = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: solver.step(s, None), s, None, num_steps)
    )(solver.init(jnp.asarray(x), jnp.asarray(y)))
    return state.outer[0].trace, state, info


@pytest.mark.parametrize("sigma", [1.0, 0.1, 1e-3])
def test_hypergradient_has_the_bias_of_sigma(sigma):
    # Oracle: closed form, ψ_σ' = (x - 1)/(1 + σ).
    got, _, info = hypergradient(
        wants_one, follows, 0.3, 0.0, sigma=sigma, inner_steps=80
    )
    # 1/σ times the rounding of u - w.
    assert_allclose(
        got, (0.3 - 1) / (1 + sigma), rtol=1e-14 / sigma, float32=1e-6 / sigma
    )
    assert_allclose(info.penalty, 1 / sigma, rtol=1e-15)


@pytest.mark.parametrize(
    ("sigma", "known"), [(0.1, 0.4313725), (0.01, 0.4391218), (0.001, 0.4399120)]
)
def test_on_a_line_of_minimisers_the_upper_level_chooses(sigma, known):
    # Oracle: closed form. ψ' = (x - aᵀt)/|a|² = 0.44, and the fixture's biased numbers.
    a, t = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    inner_steps = 300
    got, state, _ = hypergradient(
        lambda x, y, b: 0.5 * jnp.sum((y - t) ** 2),
        lambda x, y, b: 0.5 * (a @ y - x) ** 2,
        0.7,
        jnp.zeros(2),
        sigma=sigma,
        step_size=0.3,
        inner_steps=inner_steps,
    )
    assert_allclose(got, known, rtol=0, atol=5.1e-8, float32=1e-6 / sigma)
    # Along the line, only f pulls u, to t at the rate 1 - γσ; nothing pulls w.
    along = jnp.array([2.0, -1.0])
    left = (1 - 0.3 * sigma) ** inner_steps * (along @ -t)
    assert_allclose(along @ (state.y - t), left, rtol=1e-9, float32=1e-2)
    assert_allclose(along @ state.z, 0.0, atol=1e-15)


def test_constraint_that_is_active_stops_the_hypergradient():
    # Oracle: closed form. Y = [0, ∞), x < 0: y* = 0 and ψ' = 0, not x - 1.
    got, state, info = hypergradient(
        wants_one,
        follows,
        -0.5,
        2.0,
        sigma=0.1,
        inner_steps=60,
        project_y=lambda y: jnp.maximum(y, 0.0),
    )
    assert got == 0
    assert state.y == state.z == 0
    assert info.residual_norm[-1] == 0
    # The projection is part of each inner step: at x = 0.2 it is not active.
    free, _, _ = hypergradient(
        wants_one,
        follows,
        0.2,
        2.0,
        sigma=0.1,
        inner_steps=60,
        project_y=lambda y: jnp.maximum(y, 0.0),
    )
    assert_allclose(free, -0.8 / 1.1, rtol=1e-12)


def test_proximal_term_and_averaging_do_not_change_the_limit():
    # Oracle: closed form, ψ_σ' as without them.
    got, _, _ = hypergradient(
        wants_one,
        follows,
        0.3,
        0.0,
        sigma=0.1,
        inner_steps=20,
        prox_step=0.5,
        averaging=0.5,
        num_steps=200,
    )
    assert_allclose(got, -0.7 / 1.1, rtol=1e-12)


def test_proximal_point_descends_where_the_lower_level_is_concave():
    # Oracle: closed form. g = cos(y) has its minimum in [0, 2π] at π, f = (y - 4)²/2.
    sigma = 1e-3
    got, state, _ = hypergradient(
        lambda x, y, b: 0.5 * (y - 4.0) ** 2 + x * y,
        lambda x, y, b: jnp.cos(y),
        0.2,
        1.0,  # g is concave here
        sigma=sigma,
        prox_step=0.5,
        inner_steps=10,
        step_size=0.3,
        num_steps=300,
    )
    assert_allclose(state.z, np.pi, rtol=1e-12)
    assert_allclose(got, np.pi, atol=2 * sigma)  # ∂f/∂x at y*


def test_same_sample_of_both_differences_removes_its_noise(rng):
    # Oracle: identity. A term of g without y does not move x, however large it is.
    solver = ok.bilevel.penalty(
        wants_one,
        lambda x, y, noise: follows(x, y, None) + jnp.sum(noise * x),
        outer=FROZEN,
        inner=optax.sgd(0.5),
        sigma=1e-3,
        inner_steps=60,
    )
    state = solver.init(jnp.zeros(2), jnp.zeros(2))
    state, _ = solver.step(state, jnp.array([1e3, -1e3]))
    assert_allclose(state.outer[0].trace, -1 / 1.001, rtol=1e-9)


def test_twenty_steps_are_those_of_the_paper(rng):
    # Oracle: NumPy transcription, with a separate sample for every gradient.
    T = 3
    samples = [
        ok.bilevel.Batches(
            upper_x=noisy_sample(rng),
            upper_y=noisy_sample(rng, T),
            lower_x=noisy_sample(rng),
            lower_y=noisy_sample(rng, T),
            lower_z=noisy_sample(rng, T),
        )
        for _ in range(20)
    ]
    x, y = rng.normal(size=3), rng.normal(size=2)
    expected = oracles.penalty_double_loop(
        oracles.NoisyQuadratic, x, y, y, samples, T, alpha=0.02, gamma=0.2,
        sigma=lambda k: 0.5 / (k + 1) ** (1 / 3), rho=0.7, beta=0.6,
        project=lambda v: np.clip(v, -0.5, 0.5),
    )  # fmt: skip
    solver = ok.bilevel.penalty(
        noisy_upper,
        noisy_lower,
        outer=optax.sgd(0.02),
        inner=optax.sgd(0.2),
        sigma=ok.bilevel.sigma_schedule(0.5),
        inner_steps=T,
        prox_step=0.7,
        averaging=0.6,
        project_x=lambda x: jnp.clip(x, -0.5, 0.5),
        project_y=lambda y: jnp.clip(y, -0.5, 0.5),
    )
    state = solver.init(x, y)
    for sample in samples:
        state, info = solver.step(state, sample)
    for got, want in zip((state.x, *state.centers), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)
    assert info.result == ok.RESULTS.successful


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "finite sigma > 0, got sigma=0.0"),
        ({"sigma": -0.1}, "finite sigma > 0"),
        ({"prox_step": 0.0}, "finite prox_step > 0"),
        ({"averaging": 1.5}, "averaging <= 1, .*got averaging=1.5"),
        ({"inner_steps": 0}, "inner_steps >= 1"),
    ],
)
def test_bad_numbers_are_refused_when_the_solver_is_made(options, message):
    # Oracle: identity.
    options = {"sigma": 0.1, "inner_steps": 3} | options
    with pytest.raises(ValueError, match=message):
        ok.bilevel.penalty(
            wants_one,
            follows,
            outer=optax.sgd(0.1),
            inner=optax.sgd(0.1),
            **options,
        )


@pytest.mark.parametrize(
    ("sigma", "result"),
    [
        (lambda k: 0.1 * (1.0 + k.astype(float)), ok.RESULTS.schedule_bounds),
        (lambda k: 0.1 - k.astype(float), ok.RESULTS.bad_penalty),
    ],
)
def test_sigma_that_rises_or_turns_negative_is_reported(sigma, result):
    # Oracle: identity.
    solver = ok.bilevel.penalty(
        wants_one,
        follows,
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.1),
        sigma=sigma,
        inner_steps=2,
    )
    state = solver.init(jnp.ones(2), jnp.zeros(2))
    state, _ = solver.step(state, None)
    _, info = solver.step(state, None)
    assert info.result == result
