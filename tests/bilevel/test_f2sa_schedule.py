import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok

CONSTANTS = ok.bilevel.Constants(convexity=0.5, lower=2.0, upper=1.5, total=3.0)


def verdict_f2sa(s, constants, T, num_steps):
    """Theorem 1 in NumPy: whether its step-size conditions hold in each step."""
    mu, l_g, l_f, l_F = constants
    lam, held = s.initial_penalty, []
    for k in range(num_steps):
        alpha, gamma = s.c_alpha / (k + s.k0) ** s.a, s.c_gamma / (k + s.k0) ** s.c
        delta = min(T * mu / 16 * alpha * lam**2, gamma / (2 * alpha) - lam)
        pairs = [
            (alpha * lam, gamma),
            (gamma, 1 / (4 * l_g)),
            (gamma, 1 / (4 * T * mu)),
            (alpha, 1 / (8 * l_f)),
            (alpha, 1 / (2 * s.ratio * l_F)),
            (delta / lam, T * mu * alpha * lam / 16),
            (2 * l_f / mu, lam),
            (lam, lam + delta),
        ]
        held.append(all(a <= b * (1 + 1e-8) for a, b in pairs))
        lam += delta
    return np.array(held)


def verdict_f3sa(s, constants, c_eta, num_steps):
    """Theorem 2 in NumPy."""
    mu, l_g, l_f, l_F = constants

    def alpha(k):
        return s.c_alpha / (k + s.k0) ** s.a

    def gamma(k):
        return s.c_gamma / (k + s.k0) ** s.c

    def eta(k):
        return 1.0 if k <= 1 else (k + 1.0) ** (-2 * s.c)

    lam, held = s.initial_penalty, []
    for k in range(num_steps):
        delta = gamma(k) / alpha(k) - lam
        last = gamma(max(k - 1, 0))
        pairs = [
            (alpha(k) * lam, gamma(k)),
            (gamma(k), 1 / (16 * l_g)),
            (s.ratio * alpha(k), 1 / l_F),
            (delta / lam, mu * alpha(k) * lam / 8),
            (2 * l_f / mu, lam),
            (lam, lam + delta),
            (2 * (last - gamma(k)) / last, eta(k + 1)),
            (c_eta * l_g**3 / mu * gamma(k) ** 2, eta(k + 1)),
        ]
        held.append(all(a <= b * (1 + 1e-8) for a, b in pairs))
        lam += delta
    return np.array(held)


NOISE = [(True, True), (True, False), (False, False)]
PROBLEMS = [
    (1.0, 10.0, 1.0, 1.0),
    (0.5, 2.0, 1.5, 3.0),
    (1.0, 1.0, 0.01, 50.0),  # λ_0 = 0.02
    (1.0, 100.0, 1.0, 1000.0),
]


@pytest.mark.parametrize("constants", PROBLEMS)
@pytest.mark.parametrize("noise", NOISE)
def test_schedules_meet_the_conditions_of_their_theorems_in_2000_steps(
    constants, noise
):
    """Oracle: the conditions of Theorems 1 and 2 in NumPy."""
    options = {"noisy_upper": noise[0], "noisy_lower": noise[1]}
    given = ok.bilevel.Constants(*constants)
    for T in (1, 32):
        schedule = ok.bilevel.f2sa_schedule(given, inner_steps=T, **options)
        assert verdict_f2sa(schedule, constants, T, 2000).all()
        assert jnp.all(penalties(schedule, 2000)[1])
    for c_eta in (0.01, 1.0, 4.0):
        schedule = ok.bilevel.f3sa_schedule(given, c_eta=c_eta, **options)
        assert verdict_f3sa(schedule, constants, c_eta, 2000).all()
        assert jnp.all(penalties(schedule, 2000)[1])


@pytest.mark.parametrize(("k0", "broken"), [(1280.0, 1940), (1280 * 10**0.5, 630)])
def test_steps_outside_the_bound_on_eta_are_reported(k0, broken):
    """Oracle: Theorem 2 in NumPy, with k_0 = 128 κ and with the paper's 128 κ √κ."""
    constants = ok.bilevel.Constants(1.0, 10.0, 1.0, 1.0)
    made = ok.bilevel.f3sa_schedule(constants)
    shift = {"c_alpha": 8 / (2 * k0**0.4), "c_gamma": 8 / k0**0.6, "k0": k0}
    schedule = dataclasses.replace(made, **shift)
    held = verdict_f3sa(schedule, constants, 1.0, 1999)
    assert (~held).sum() == broken
    np.testing.assert_array_equal(penalties(schedule, 1999)[1], held)


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
