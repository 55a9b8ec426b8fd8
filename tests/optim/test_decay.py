"""Proximal weight decay."""

import jax.numpy as jnp
import optax
import pytest
from precision import assert_allclose

import optkit as ok


def test_proximal_decay_minimises_its_objective(rng):
    """Oracle: closed form, (theta + u) / (1 + eta lambda)."""
    theta, u = jnp.asarray(rng.standard_normal((2, 5)))
    tx = ok.optim.proximal_weight_decay(0.3, 0.7)
    update, _ = tx.update(u, tx.init(theta), theta)
    assert_allclose(theta + update, (theta + u) / (1 + 0.3 * 0.7), rtol=1e-14)


def test_decay_reads_the_learning_rate_of_its_own_step():
    """Oracle: closed form at steps 0, 1, 2 of a schedule."""
    tx = ok.optim.proximal_weight_decay(
        lambda step: 1.0 / (1.0 + step.astype(float)), 0.5
    )
    theta = jnp.array(1.0)
    state = tx.init(theta)
    for step in range(3):
        update, state = tx.update(jnp.array(0.0), state, theta)
        assert_allclose(theta + update, 1 / (1 + 0.5 / (1 + step)), rtol=1e-14)


def test_decay_itself_may_be_a_schedule():
    """Oracle: closed form at steps 0, 1, 2."""
    tx = ok.optim.proximal_weight_decay(
        0.5, lambda step: 1.0 / (1.0 + step.astype(float))
    )
    theta = jnp.array(1.0)
    state = tx.init(theta)
    for step in range(3):
        update, state = tx.update(jnp.array(0.0), state, theta)
        assert_allclose(theta + update, 1 / (1 + 0.5 / (1 + step)), rtol=1e-14)


def test_small_decay_is_not_lost_in_float32():
    """Oracle: closed form; (theta + u) / (1 + c) - theta would round to half."""
    theta = jnp.array(1.0, jnp.float32)
    tx = ok.optim.proximal_weight_decay(1e-4, 1e-5)
    update, _ = tx.update(jnp.zeros_like(theta), tx.init(theta), theta)
    assert_allclose(update, -1e-9, rtol=1e-6)


def test_it_is_the_last_link_of_any_chain(rng):
    """Oracle: closed form, around optax's SGD."""
    theta, grad = jnp.asarray(rng.standard_normal((2, 4)))
    tx = optax.chain(optax.sgd(0.2), ok.optim.proximal_weight_decay(0.2, 0.5))
    update, _ = tx.update(grad, tx.init(theta), theta)
    assert_allclose(theta + update, (theta - 0.2 * grad) / 1.1, rtol=1e-13)


def test_missing_params_are_asked_for():
    """Oracle: the message."""
    tx = ok.optim.proximal_weight_decay(0.1, 0.1)
    with pytest.raises(
        ValueError, match=r"`ok.optim.proximal_weight_decay`.*params=None"
    ):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_updates_unlike_the_params_are_refused():
    """Oracle: the message."""
    tx = ok.optim.proximal_weight_decay(0.1, 0.1)
    state = tx.init({"w": jnp.ones(2)})
    with pytest.raises(
        ValueError,
        match=r"`ok.optim.proximal_weight_decay` needs params in the structure",
    ):
        tx.update({"w": jnp.ones(2)}, state, {"v": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"got \(2,\) at params\['w'\], not \(3,\)"):
        tx.update({"w": jnp.ones(3)}, state, {"w": jnp.ones(2)})
    with pytest.raises(
        TypeError, match=r"`ok.optim.proximal_weight_decay` needs floating"
    ):
        tx.init({"w": jnp.arange(2)})
