import dataclasses

import jax
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


# The conditions of the theorem hold in the first step, each with little to spare.
TIGHT = dataclasses.replace(
    SCHEDULE, growth=0.0187, constants=ok.bilevel.Constants(0.3, 0.32, 0.4, 7.0)
)


def by_penalty(penalty):
    tx = {"outer": optax.sgd(1e-3), "inner": optax.sgd(0.3)}
    return ok.bilevel.f2sa(upper, lower, **tx, penalty=penalty)


def results(penalty, num_steps=2):
    return steps_of(by_penalty(penalty), num_steps)


def steps_of(solver, num_steps=2):
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
    schedule = ok.bilevel.f3sa_schedule(ok.bilevel.Constants(1.0, 1.0, 1.0))
    decays = [float(schedule.decay(jnp.asarray(k))) for k in range(4)]
    assert_allclose(decays, [0, 0, 1 - 3**-0.8, 1 - 4**-0.8], rtol=1e-14)


def test_transforms_take_the_step_sizes_of_the_solvers_own_step():
    # Oracle: closed form, -ξ α_k, -γ_k and -α_k λ_k.
    schedule = dataclasses.replace(SCHEDULE, ratio=0.5)
    one = jnp.ones(())
    made = schedule.settings()
    for tx, step_size in (
        (made.outer, 0.5 * schedule.alpha(4)),
        (made.inner, schedule.gamma(4)),
        (made.inner_y, schedule.alpha(4) * 7.0),
    ):
        update, _ = tx.update(one, tx.init(one), one, penalty=7.0, count=4)
        assert_allclose(update, -step_size, rtol=1e-15)


@pytest.mark.parametrize(
    "changes",
    [
        {"c_alpha": 0.4, "c_gamma": 0.2, "constants": None},  # α λ <= γ
        {"target": 0.1},  # δ >= 0
        {"c_gamma": 1.05},  # γ <= 1/(4 l_g)
        {"inner_steps": 2},  # γ <= 1/(4 T μ)
        {"ratio": 1.2},  # α <= 1/(2 ξ l_F)
        {"initial_penalty": 2.6},  # λ >= 2 l_f/μ
        {"growth": 0.019},  # δ <= T μ α λ²/16
    ],
)
def test_schedule_outside_its_bounds_warns_and_steps(changes):
    # Oracle: identity. Each change breaks one bound; unchanged it breaks none.
    def first(schedule):
        return steps_of(ok.bilevel.f2sa(upper, lower, schedule=schedule), 1)[0].result

    assert first(SCHEDULE) == first(TIGHT) == ok.RESULTS.successful
    broken = dataclasses.replace(TIGHT, **changes)
    assert first(broken) == ok.RESULTS.schedule_bounds


OF_F2SA = ok.bilevel.f2sa_schedule(ok.bilevel.Constants(1.0, 2.0, 1.0, 1.0))
OF_F3SA = ok.bilevel.f3sa_schedule(ok.bilevel.Constants(1.0, 2.0, 1.0, 1.0))
METHODS = pytest.mark.parametrize(
    ("make", "schedule", "single"),
    [
        (ok.bilevel.f2sa, OF_F2SA, {"penalty": 2.0, "inner_steps": 3}),
        (ok.bilevel.f3sa, OF_F3SA, {"penalty": 2.0, "decay": 0.5}),
        (ok.bilevel.penalty, OF_F2SA, {"sigma": 0.5, "inner_steps": 3}),
        (ok.bilevel.penalty_momentum, OF_F3SA, {"sigma": 0.5, "decay": 0.5}),
    ],
)


@METHODS
def test_a_schedule_brings_all_settings_so_they_cannot_disagree(make, schedule, single):
    """Oracle: the message for each single argument beside it, and for too few."""
    tx = {"outer": optax.sgd(0.1), "inner": optax.sgd(0.1)}
    for name, value in (tx | single).items():
        with pytest.raises(ValueError, match=rf"`schedule=.*alone, got {name} too"):
            make(upper, lower, schedule=schedule, **{name: value})
    for name in tx | single:
        if (make, name) == (ok.bilevel.f2sa, "inner_steps"):  # has a default
            continue
        few = {k: v for k, v in (tx | single).items() if k != name}
        with pytest.raises(ValueError, match=rf"needs {name}, or `schedule="):
            make(upper, lower, **few)
    other = OF_F3SA if schedule is OF_F2SA else OF_F2SA
    with pytest.raises(TypeError, match="schedule"):
        make(upper, lower, schedule=other)
    name = "penalty" if "penalty" in single else "sigma"
    with pytest.raises(TypeError, match="takes a schedule as `schedule=`"):
        make(upper, lower, **tx | single | {name: schedule})


def test_f2sa_takes_the_inner_steps_of_its_schedule():
    """Oracle: the same transforms, penalty and T = 32, one by one."""
    made = OF_F2SA.settings()
    tx = {"outer": made.outer, "inner": made.inner, "inner_y": made.inner_y}
    one = ok.bilevel.f2sa(upper, lower, schedule=OF_F2SA)
    other = ok.bilevel.f2sa(upper, lower, **tx, penalty=2.0, inner_steps=32)
    start = jnp.zeros(2), jnp.ones(2)
    state, _ = one.step(one.init(*start), None)
    want, _ = other.step(other.init(*start), None)
    for name in ("x", "y", "z"):
        assert_allclose(getattr(state, name), getattr(want, name), rtol=1e-15)
    # z shrinks by 1 - 2γ in each of the 32 steps, from 1 towards x = 0.
    shrink = (1 - 2 * float(OF_F2SA.gamma(0))) ** 32
    assert_allclose(state.z, shrink, rtol=1e-13, float32=1e-5)


def test_fewer_inner_steps_than_the_schedule_was_made_for_are_reported():
    """Oracle: δ_k/λ_k <= T μ β_k/16 in NumPy: T = 1 breaks it in 199 of 200 steps."""
    short = dataclasses.replace(OF_F2SA, inner_steps=1)
    for schedule, count in ((OF_F2SA, 0), (short, 199)):
        solver = ok.bilevel.f2sa(upper, lower, schedule=schedule)
        state = solver.init(jnp.zeros(2), jnp.ones(2))
        _, history = ok.run(solver, state, lambda k: None, 200)
        assert (history.result == ok.RESULTS.schedule_bounds).sum() == count


@pytest.mark.filterwarnings("error")
def test_a_count_of_numpy_is_a_count():
    """Oracle: a Python integer; of NumPy's, Equinox warns."""
    schedule = dataclasses.replace(OF_F2SA, inner_steps=np.int64(3))
    assert type(schedule.inner_steps) is int
    assert hash(schedule) == hash(dataclasses.replace(OF_F2SA, inner_steps=3))


def test_a_convexity_above_the_smoothness_is_refused():
    # Oracle: the message; no function has such constants.
    with pytest.raises(ValueError, match=r"convexity <= 1\.0, which is `lower`"):
        ok.bilevel.f2sa_schedule(ok.bilevel.Constants(2.0, 1.0, 1.0))


def numbers(solver, num_steps=20, start=None):
    """Both iterates and the results after steps on noise that is drawn by the step."""
    state = solver.init(jnp.zeros(3), jnp.zeros(3)) if start is None else start

    def batch(k):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), k), (3,))

    return ok.run(solver, state, batch, num_steps)


def noisy(x, y, batch):
    return jnp.sum((y - x) ** 2) / 2 + 0.1 * jnp.vdot(batch.astype(y.dtype), y)


@METHODS
def test_a_killed_run_resumes_with_a_schedule_made_anew(make, schedule, single):
    """Oracle: the run in one piece, bit for bit, from leaves in NumPy."""
    del single
    whole, _ = numbers(make(upper, noisy, schedule=schedule))
    half, _ = numbers(make(upper, noisy, schedule=schedule), 9)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(half)]
    solver = make(upper, noisy, schedule=dataclasses.replace(schedule))
    structure = jax.tree.structure(solver.init(jnp.zeros(3), jnp.zeros(3)))
    loaded = structure.unflatten(map(jnp.asarray, leaves))
    end, _ = numbers(solver, 11, loaded)
    jax.tree.map(np.testing.assert_array_equal, end, whole)


def test_a_schedule_may_be_traced_and_mapped():
    """Oracle: single schedules with the same numbers."""

    @jax.jit
    @jax.vmap
    def run(k0):
        solver = ok.bilevel.f2sa(
            upper, lower, schedule=dataclasses.replace(OF_F2SA, k0=k0)
        )
        state = solver.init(jnp.zeros(2), jnp.ones(2))
        return jax.lax.scan(solver.step, state, None, 5)[0].x

    shifts = 100.0, 300.0
    for got, k0 in zip(run(jnp.array(shifts)), shifts, strict=True):
        schedule = dataclasses.replace(OF_F2SA, k0=k0)
        solver = ok.bilevel.f2sa(upper, lower, schedule=schedule)
        state = solver.init(jnp.zeros(2), jnp.ones(2))
        for _ in range(5):
            state, _ = solver.step(state, None)
        assert_allclose(got, state.x, rtol=1e-12)


def test_the_proximal_methods_are_f2sa_and_f3sa_with_the_same_schedule():
    """Oracle: identity to the last bit."""
    for one, other, schedule in (
        (ok.bilevel.penalty, ok.bilevel.f2sa, OF_F2SA),
        (ok.bilevel.penalty_momentum, ok.bilevel.f3sa, OF_F3SA),
    ):
        runs = (numbers(make(upper, noisy, schedule=schedule)) for make in (one, other))
        (got, _), (want, _) = runs
        jax.tree.map(np.testing.assert_array_equal, got, want)


@METHODS
def test_the_count_stays_at_the_largest_integer(make, schedule, single):
    """Oracle: the range of int32; a negative count would make NaN step sizes."""
    del single
    solver = make(upper, lower, schedule=schedule)
    state = solver.init(jnp.zeros(2), jnp.ones(2))
    last = jnp.iinfo(jnp.int32).max
    after, info = solver.step(state._replace(count=jnp.int32(last)), None)
    assert after.count == last
    assert info.result != ok.RESULTS.nonfinite_gradient


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
