import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import assert_allclose

import optkit as ok

SCHEDULE = ok.bilevel.PenaltySchedule(
    a=0.6, c=0.4, c_alpha=0.1, c_gamma=1.0, k0=2.0, initial_penalty=3.0,
    growth=0.5, target=0.5,
)  # fmt: skip


def upper(x, y, batch):
    return jnp.sum((y - 1) ** 2)


def lower(x, y, batch):
    return jnp.sum((y - x) ** 2)


def results(penalty, num_steps=2):
    solver = ok.bilevel.f2sa(
        upper, lower, outer=optax.sgd(1e-3), inner=optax.sgd(0.3), penalty=penalty
    )
    state = solver.init(jnp.zeros(2), jnp.ones(2))
    found = []
    for _ in range(num_steps):
        state, info = solver.step(state, None)
        found.append(info)
    return found


def test_penalty_grows_by_the_smaller_of_its_two_bounds():
    # Oracle: NumPy.
    alpha, gamma = 0.1 / 7.0**0.6, 1 / 7.0**0.4
    assert_allclose(SCHEDULE.alpha(5), alpha, rtol=1e-15)
    assert_allclose(SCHEDULE.gamma(5), gamma, rtol=1e-15)
    slow = 0.5 * alpha * 3.0**2
    assert slow < gamma / (2 * alpha) - 3.0
    assert_allclose(SCHEDULE.delta(5, 3.0), slow, rtol=1e-14)
    near = gamma / (2 * alpha) - 0.01
    assert_allclose(SCHEDULE.delta(5, near), 0.01, rtol=1e-11, float32=1e-4)


def test_decay_is_zero_in_the_first_two_steps():
    # Oracle: closed form, 1 - (k + 1)^(-2c).
    decays = [float(SCHEDULE.decay(jnp.asarray(k))) for k in range(4)]
    assert_allclose(decays, [0, 0, 1 - 3**-0.8, 1 - 4**-0.8], rtol=1e-14)


def test_transforms_take_the_step_sizes_of_the_solvers_own_step():
    # Oracle: closed form, -ξ α_k, -γ_k and -α_k λ_k.
    schedule = dataclasses.replace(SCHEDULE, ratio=0.5)
    one = jnp.ones(())
    for tx, step_size in (
        (schedule.outer(), 0.5 * schedule.alpha(4)),
        (schedule.inner(), schedule.gamma(4)),
        (schedule.inner_y(), schedule.alpha(4) * 7.0),
    ):
        update, _ = tx.update(one, tx.init(one), one, penalty=7.0, count=4)
        assert_allclose(update, -step_size, rtol=1e-15)


@pytest.mark.parametrize(
    "changes",
    [{"c_gamma": 0.1}, {"max_gamma": 0.5}, {"max_alpha": 0.01}, {"target": 0.1}],
)
def test_schedule_outside_its_bounds_warns_and_steps(changes):
    # Oracle: identity. Each change breaks one bound; unchanged it breaks none.
    assert results(SCHEDULE)[0].result == ok.RESULTS.successful
    broken = results(dataclasses.replace(SCHEDULE, **changes))
    assert broken[0].result == ok.RESULTS.schedule_bounds


def test_penalty_that_falls_or_is_not_positive_is_reported():
    # Oracle: identity. A step with a bad penalty is discarded, but not the next one.
    first, second = results(lambda k: 2.0 - 1.5 * k.astype(float), 2)
    assert first.result == ok.RESULTS.schedule_bounds
    assert second.penalty == 0.5
    third = results(lambda k: 2.0 - 1.5 * k.astype(float), 3)[2]
    assert third.result == ok.RESULTS.bad_penalty
    zero, one = results(lambda k: k.astype(float))
    assert (zero.result == ok.RESULTS.bad_penalty) & (zero.penalty == 0)
    assert (one.result == ok.RESULTS.successful) & (one.penalty == 1)


@pytest.mark.parametrize("penalty", [0.0, -1, float("nan"), np.inf])
def test_penalty_that_is_not_positive_is_refused(penalty):
    # Oracle: identity.
    with pytest.raises(ValueError, match=r"`ok\.bilevel\.f2sa` needs .* penalty > 0"):
        results(penalty)


def test_penalty_of_another_type_is_refused():
    # Oracle: identity.
    with pytest.raises(TypeError, match="needs a number or a scalar array for penalty"):
        results("ten")


@pytest.mark.parametrize("name", ["k0", "c_alpha", "initial_penalty"])
def test_constants_that_are_not_positive_are_refused(name):
    # Oracle: identity.
    with pytest.raises(ValueError, match=f"needs a finite {name} > 0, got {name}=0.0"):
        dataclasses.replace(SCHEDULE, **{name: 0.0})


def test_sigma_falls_as_its_power_to_its_floor():
    # Oracle: closed form.
    sigma = ok.bilevel.sigma_schedule(2.0, power=0.2, floor=0.5)
    assert_allclose(sigma(jnp.asarray(31)), 1.0, rtol=1e-15)
    assert sigma(10**6) == 0.5


def test_scale_by_penalty_keeps_dtypes_and_needs_the_penalty():
    # Oracle: identity.
    tx = ok.bilevel.scale_by_penalty()
    grads = {"a": jnp.ones(2, jnp.bfloat16), "n": None}
    updates, _ = tx.update(grads, tx.init(grads), penalty=jnp.asarray(3.0))
    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(updates["a"], 3)
    with pytest.raises(TypeError, match=r"\.scale_by_penalty` needs `penalty=`"):
        tx.update(grads, tx.init(grads))
