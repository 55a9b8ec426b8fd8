"""Sophia against its paper's Algorithm 3."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Sophia
from precision import assert_allclose

import optkit as ok


def schedule(step):
    """A learning rate that falls; for the step count of JAX or of Python."""
    return jnp.asarray(0.1 / (1 + np.arange(32)))[step]


OPTIONS = {
    "sophia_h": {},
    "sophia_g": {"gamma": 0.05, "weight_decay": 0.2},
    "each_step": {"k": 1, "gamma": 5.0, "betas": (0.9, 0.5)},
    "lazy": {"k": 3, "gamma": 20.0, "weight_decay": 0.2, "eps": 1e-2},
    "schedule": {"lr": schedule, "weight_decay": 0.2, "k": 4},
}


def ours(lr=0.1, betas=(0.96, 0.99), gamma=0.01, eps=1e-12, weight_decay=0.0, k=10):
    """`ok.optim.sophia` with the paper's names."""
    return ok.optim.sophia(lr, *betas, gamma, eps, weight_decay, update_interval=k)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_twenty_steps_equal_the_transcription(options, rng):
    """Oracle: NumPy transcription; diagonals of both signs, and the win rate."""
    theta, grads, diags = (rng.standard_normal(s) for s in (9, (20, 9), (20, 9)))
    oracle, tx = Sophia(theta, **({"lr": 0.1} | options)), ours(**options)
    params = jnp.asarray(theta)

    @jax.jit
    def step(params, state, g, h):
        updates, state = tx.update(g, state, params, hessian_diag=h)
        return optax.apply_updates(params, updates), state

    state, win_rates = tx.init(params), []
    for g, h in zip(grads, diags, strict=True):
        params, state = step(params, state, jnp.asarray(g), jnp.asarray(h))
        expected = oracle.step(g, h)
        assert_allclose(params, expected, rtol=1e-12, atol=1e-12)
        win_rates.append(oracle.win_rate)
        assert_allclose(state[0].win_rate, oracle.win_rate, rtol=1e-6)
    if "gamma" in options and options["gamma"] > 1:
        assert 0 < np.mean(win_rates) < 1


def test_the_first_step_uses_the_first_diagonal():
    """Oracle: closed form; the fault is a sign step from a curvature still zero."""
    tx = ok.optim.scale_by_sophia(b1=0.5, b2=0.5, gamma=1.0)
    grads, diag = jnp.array([1.0, -4.0]), jnp.array([8.0, 16.0])
    updates, _ = tx.update(grads, tx.init(grads), hessian_diag=diag)
    assert_allclose(updates, [0.5 / 4, -2.0 / 8], rtol=1e-12)


def test_between_refreshes_the_diagonal_is_not_used():
    """Oracle: identity; not even a NaN."""
    tx = ok.optim.scale_by_sophia(update_interval=3)
    ones = jnp.ones(2)
    state = tx.init(ones)
    for diag in (ones, ones * jnp.nan, ones * jnp.inf, 2 * ones):
        _, state = tx.update(ones, state, hessian_diag=diag)
    assert_allclose(state.h, 0.99 * 0.01 + 0.01 * 2, rtol=1e-12)


def test_without_positive_curvature_a_step_is_a_sign():
    """Oracle: closed form, also at zero gradient and zero curvature."""
    tx = ok.optim.scale_by_sophia()
    grads = jnp.array([2.0, -3.0, 1e-9, 0.0])
    diag = jnp.array([-5.0, -1e-30, 0.0, 0.0])
    updates, state = tx.update(grads, tx.init(grads), hessian_diag=diag)
    assert_allclose(updates, [1.0, -1.0, 1.0, 0.0])
    assert_allclose(state.win_rate, 0.25)


def test_sophia_g_takes_the_gauss_newton_diagonal(key):
    """Oracle: its mean, the exact diagonal of a linear least-squares problem."""
    x = jnp.array([[1.0], [2.0]])
    f = ok.value_grad_and_gauss_newton_diag(lambda w, x: x @ w, ok.SquaredError())
    tx = ok.optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=0.05)
    w = jnp.array([[0.1]])
    _, grads, diag = f(w, x, jnp.zeros((2, 1)), key=key, num_probes=4000)
    updates, _ = tx.update(grads, tx.init(w), hessian_diag=diag)
    # diag is the mean of 4000 squares of a normal number: relative error sqrt(2/4000).
    exact = grads / (0.05 * jnp.mean(x**2))
    assert_allclose(updates, np.clip(exact, -1, 1), rtol=4 * np.sqrt(2 / 4000))


def test_second_moments_of_bfloat16_params_do_not_stall():
    """Oracle: the mean of a constant is the constant; a bf16 average stops at 0.84."""
    tx = ok.optim.scale_by_sophia(update_interval=1, state_dtype=jnp.bfloat16)
    ones = jnp.ones(2, jnp.bfloat16)
    step = jax.jit(lambda state: tx.update(ones, state, hessian_diag=ones))
    state = tx.init(ones)
    for _ in range(1000):
        updates, state = step(state)
    assert updates.dtype == state.m.dtype == jnp.bfloat16
    assert_allclose(state.h, 1 - 0.99**1000, rtol=1e-5)


def test_the_win_rate_counts_all_leaves():
    """Oracle: counting; empty leaves and None do not count; without leaves it is 0."""
    tx = ok.optim.scale_by_sophia(b1=0.0, b2=0.0, gamma=1.0)
    grads = {"a": jnp.ones((3, 2)), "b": None, "c": jnp.zeros((0, 2)), "d": jnp.ones(2)}
    diag = jax.tree.map(lambda g: 2 * g, grads) | {"d": jnp.array([0.5, 2.0])}
    _, state = tx.update(grads, tx.init(grads), hessian_diag=diag)
    assert_allclose(optax.tree.get(state, "win_rate"), 7 / 8)
    _, state = tx.update({}, tx.init({}), hessian_diag={})
    assert_allclose(state.win_rate, 0.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ok.optim.scale_by_sophia(b1=-0.1),
            r"`ok.optim.scale_by_sophia`.*b1=-0.1",
        ),
        (lambda: ok.optim.sophia(0.1, b1=-0.1), r"`ok.optim.sophia`.*b1=-0.1"),
        (lambda: ok.optim.sophia(0.1, b2=1.0), r"b2=1.0"),
        (lambda: ok.optim.sophia(0.1, gamma=0.0), r"gamma.*0.0"),
        (lambda: ok.optim.sophia(0.1, eps=0.0), r"eps.*0.0"),
        (lambda: ok.optim.sophia(0.1, update_interval=0), r"update_interval"),
        (lambda: ok.optim.sophia(-0.1), r"`ok.optim.sophia`.*learning_rate=-0.1"),
        (lambda: ok.optim.sophia(0.1, weight_decay=-1.0), r"weight_decay=-1.0"),
        (lambda: ok.optim.sophia(0.1, state_dtype=jnp.int8), r"state_dtype.*int8"),
    ],
)
def test_bad_arguments_raise_at_construction(make, match):
    """Oracle: the message names the call, the value and the next step."""
    with pytest.raises((ValueError, TypeError), match=match):
        make()


def test_a_missing_diagonal_names_both_ways_to_it():
    """Oracle: the message."""
    tx, ones = ok.optim.sophia(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match=r"value_grad_and_diag.*with_hutchinson"):
        tx.update(ones, tx.init(ones), ones)


@pytest.mark.parametrize("where", ["gradient", "diagonal"])
def test_infinity_is_seen_and_not_clipped_to_a_sign_step(where):
    """Oracle: identity. The state keeps an infinite mean forever."""
    tx, ones = ok.optim.scale_by_sophia(), jnp.ones(2)
    bad = jnp.array([np.inf, 1.0])
    grads, diag = (bad, ones) if where == "gradient" else (ones, bad)
    updates, _ = tx.update(grads, tx.init(ones), hessian_diag=diag)
    assert np.isnan(updates[0])
    assert np.isfinite(updates[1])
