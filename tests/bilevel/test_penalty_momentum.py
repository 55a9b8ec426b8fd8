import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from precision import assert_allclose
from problems import noisy_lower, noisy_sample, noisy_upper

import optkit as ok


def test_twenty_steps_are_those_of_the_paper(rng):
    # Oracle: NumPy transcription with six estimators and a sample for every gradient.
    fields = ok.bilevel.Batches._fields
    samples = [
        ok.bilevel.Batches(**{f: noisy_sample(rng) for f in fields}) for _ in range(20)
    ]
    x, y = rng.normal(size=3), rng.normal(size=2)
    expected = oracles.penalty_single_loop(
        oracles.NoisyQuadratic, x, y, y, samples, alpha=0.01, gamma=0.1,
        eta=lambda k: 1.0 if k <= 1 else 0.3, sigma=lambda k: 0.5 / (k + 1) ** 0.2,
        rho=0.7, beta=0.6, project=lambda v: np.clip(v, -0.8, 0.8),
    )  # fmt: skip
    solver = ok.bilevel.penalty_momentum(
        noisy_upper,
        noisy_lower,
        outer=optax.sgd(0.01),
        inner=optax.sgd(0.1),
        sigma=ok.bilevel.sigma_schedule(0.5, power=0.2),
        decay=0.7,
        prox_step=0.7,
        averaging=0.6,
        project_x=lambda x: jnp.clip(x, -0.8, 0.8),
        project_y=lambda y: jnp.clip(y, -0.8, 0.8),
    )
    state = solver.init(x, y)
    for sample in samples:
        state, _ = solver.step(state, sample)
    for got, want in zip((state.x, *state.centers), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(("x", "slope"), [(0.3, -0.7 / 1.1), (-0.5, 0.0)])
def test_hypergradient_tends_to_its_closed_form_with_a_constraint(x, slope):
    # Oracle: closed form, ψ_σ' = (x - 1)/(1 + σ) inside Y = [0, ∞), 0 at its bound.
    solver = ok.bilevel.penalty_momentum(
        lambda x, y, b: 0.5 * (y - 1) ** 2,
        lambda x, y, b: 0.5 * (y - x) ** 2,
        outer=optax.chain(optax.trace(0.0), optax.scale(0.0)),
        inner=optax.sgd(0.3),
        sigma=0.1,
        decay=0.9,
        prox_step=0.5,
        averaging=0.5,
        project_y=lambda y: jnp.maximum(y, 0.0),
    )
    state, _ = jax.jit(
        lambda s: jax.lax.scan(lambda s, _: solver.step(s, None), s, None, 600)
    )(solver.init(jnp.asarray(x), jnp.asarray(2.0)))
    assert_allclose(state.outer[0].trace, slope, rtol=1e-11, atol=1e-11)
