import jax
import jax.numpy as jnp
import optax
import oracles
from precision import assert_allclose
from problems import noisy_lower, noisy_sample, noisy_upper, q2_lower, q2_upper

import optkit as ok


def test_twenty_steps_are_those_of_the_paper(rng):
    # Oracle: NumPy transcription with six estimators and a sample for every gradient.
    schedule = ok.bilevel.MomentumSchedule(
        a=3 / 5, c=2 / 5, c_alpha=0.08, c_gamma=0.3, k0=4.0, initial_penalty=2.0,
        ratio=0.7,
    )  # fmt: skip
    fields = ok.bilevel.Batches._fields
    samples = [
        ok.bilevel.Batches(**{f: noisy_sample(rng) for f in fields}) for _ in range(20)
    ]
    x, y = rng.normal(size=3), rng.normal(size=2)

    def alpha(k):
        return 0.08 / (k + 4.0) ** (3 / 5)

    def gamma(k):
        return 0.3 / (k + 4.0) ** (2 / 5)

    def eta(k):
        return 1.0 if k <= 1 else (k + 1.0) ** (-4 / 5)

    def delta(k, penalty):
        return gamma(k) / alpha(k) - penalty

    *expected, penalty = oracles.f3sa(
        oracles.NoisyQuadratic, x, y, y, samples, alpha, gamma, eta, delta, 2.0, 0.7
    )
    solver = ok.bilevel.f3sa(noisy_upper, noisy_lower, schedule=schedule)
    state = solver.init(x, y)
    for sample in samples:
        state, _ = solver.step(state, sample)
    for got, want in zip((state.x, state.y, state.z), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)
    assert_allclose(state.penalty, penalty, rtol=1e-12)


def test_exact_gradients_make_exact_estimates():
    # Oracle: identity. Without noise F3SA is F2SA with one inner step, whatever β.
    tx = {"outer": optax.sgd(0.05), "inner": optax.sgd(0.3), "penalty": 3.0}
    f3sa = ok.bilevel.f3sa(q2_upper, q2_lower, **tx, decay=0.9)
    f2sa = ok.bilevel.f2sa(q2_upper, q2_lower, **tx)
    start = jnp.array([1.0, 2.0]), jnp.array([-1.0, 0.5])

    @jax.jit
    def run(*states):
        def step(states, _):
            f3, f2 = states
            return (f3sa.step(f3, None)[0], f2sa.step(f2, None)[0]), None

        return jax.lax.scan(step, states, None, 30)[0]

    f3, f2 = run(f3sa.init(*start), f2sa.init(*start))
    for name in ("x", "y", "z"):
        assert_allclose(getattr(f3, name), getattr(f2, name), rtol=1e-12)
