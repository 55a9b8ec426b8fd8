import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok

CONSTANTS = ok.bilevel.Constants(convexity=0.5, lower=2.0, upper=1.5, total=3.0)


def penalties(schedule, num_steps):
    """λ_0, ..., λ_K, and whether each step is within the bounds."""

    def step(lam, k):
        new = lam + schedule.delta(k, lam)
        return new, (lam, schedule.is_within(k, lam))

    start = jnp.asarray(schedule.initial_penalty)
    return jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(num_steps))[1])()


@pytest.mark.parametrize(
    ("make", "noisy", "a", "c"),
    [
        (ok.bilevel.f2sa_schedule, (True, True), 5 / 7, 4 / 7),
        (ok.bilevel.f2sa_schedule, (True, False), 3 / 5, 2 / 5),
        (ok.bilevel.f2sa_schedule, (False, False), 1 / 3, 0),
        (ok.bilevel.f3sa_schedule, (True, True), 3 / 5, 2 / 5),
        (ok.bilevel.f3sa_schedule, (True, False), 1 / 2, 1 / 4),
        (ok.bilevel.f3sa_schedule, (False, False), 1 / 3, 0),
    ],
)
def test_penalty_grows_with_the_power_of_the_table_within_all_bounds(make, noisy, a, c):
    # Oracle: closed form, the exponents of each noise case.
    upper, lower = noisy
    schedule = make(CONSTANTS, noisy_upper=upper, noisy_lower=lower)
    assert_allclose((schedule.a, schedule.c), (a, c), rtol=1e-15)
    num_steps = 200_000
    lam, within = penalties(schedule, num_steps)
    shifted = np.array([num_steps // 2, num_steps - 1]) + schedule.k0
    slope = np.log(lam[-1] / lam[num_steps // 2]) / np.log(shifted[1] / shifted[0])
    assert_allclose(slope, a - c, atol=1e-3)
    assert jnp.all(within)
    assert lam[0] == 2 * 1.5 / 0.5


def test_first_steps_are_those_of_the_theorem():
    # Oracle: closed form, α_0 = 1/(2 λ_0 μ k_0) and γ_0 = 1/(μ k_0).
    schedule = ok.bilevel.f2sa_schedule(CONSTANTS, inner_steps=10, ratio=2.0)
    k0 = 4 / 0.5 * max(2.0 * 3.0 / 2, 10 * 2.0, 1.5)
    assert_allclose(schedule.k0, k0, rtol=1e-15)
    assert_allclose(schedule.gamma(0), 1 / (0.5 * k0), rtol=1e-14)
    assert_allclose(schedule.alpha(0), 1 / (2 * 6 * 0.5 * k0), rtol=1e-14)


def test_noise_in_the_lower_level_alone_counts_as_noise_in_both():
    # Oracle: identity.
    alone = ok.bilevel.f2sa_schedule(CONSTANTS, noisy_upper=False, noisy_lower=True)
    assert (alone.a, alone.c) == (5 / 7, 4 / 7)


@pytest.mark.parametrize("make", [ok.bilevel.f2sa_schedule, ok.bilevel.f3sa_schedule])
def test_constants_that_are_not_positive_are_refused(make):
    # Oracle: identity.
    with pytest.raises(ValueError, match="needs a finite convexity > 0"):
        make(ok.bilevel.Constants(convexity=0.0, lower=1.0, upper=1.0))
