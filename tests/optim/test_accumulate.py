"""`ok.optim.accumulate`: one step on means, and nothing in between."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal
from oracles import AdaHessian
from precision import assert_allclose

import optkit as ok


def run(tx, params, grads, diags=None):
    """All updates, and the last params and state, of a scan that compiles once."""

    def body(carry, inputs):
        params, state = carry
        g, h = inputs
        updates, state = tx.update(g, state, params, hessian_diag=h)
        return (optax.apply_updates(params, updates), state), updates

    carry, updates = jax.lax.scan(body, (params, tx.init(params)), (grads, diags))
    return updates, *carry


def test_a_window_is_one_step_on_the_means(rng):
    """Oracle: NumPy transcription of AdaHessian, fed with the means."""
    theta, grads, diags = (rng.standard_normal(s) for s in (5, (12, 5), (12, 5)))
    oracle = AdaHessian(theta, 0.1, weight_decay=0.1)
    tx = ok.optim.accumulate(ok.optim.adahessian(0.1, weight_decay=0.1), every=3)
    updates, params, state = run(tx, *map(jnp.asarray, (theta, grads, diags)))
    for i in range(0, 12, 3):
        oracle.step(grads[i : i + 3].mean(0), diags[i : i + 3].mean(0))
    assert_allclose(params, oracle.theta, rtol=1e-12)
    assert_array_equal(np.any(updates != 0, axis=1), [False, False, True] * 4)
    assert int(state.inner_state[0].count) == 4
    assert not np.any(state.grads)
    assert not np.any(state.hessian_diag)


@pytest.mark.usefixtures("standard_promotion")
def test_first_order_optimizers_accumulate_as_in_multi_steps(rng):
    """Oracle: `optax.MultiSteps`."""
    theta, grads = (jnp.asarray(rng.standard_normal(s)) for s in (5, (8, 5)))
    tx = ok.optim.accumulate(optax.adam(0.1), every=4, hessian_diag=False)
    found, _, state = run(tx, theta, grads)
    multi = optax.MultiSteps(optax.adam(0.1), 4, accumulator_dtype=jnp.float64)
    expected, *_ = run(multi, theta, grads)
    assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert state.hessian_diag is None


def test_a_nan_stays_in_its_window(rng):
    """Oracle: the run without that window; waiting steps are exact zeros."""
    theta, grads = (jnp.asarray(rng.standard_normal(s)) for s in (3, (6, 3)))
    bad = grads.at[2].set(jnp.nan)
    tx = ok.optim.accumulate(
        optax.apply_if_finite(ok.optim.adahessian(0.1), 5), every=2
    )
    found, _, _ = run(tx, theta, bad, jnp.abs(grads))
    kept = jnp.array([0, 1, 4, 5])
    expected, _, _ = run(tx, theta, grads[kept], jnp.abs(grads)[kept])
    assert_array_equal(found[2:4], 0.0)
    assert_allclose(found[kept], expected, rtol=1e-12)
    found, _, _ = run(ok.optim.accumulate(optax.sgd(0.1), every=2), theta, bad)
    assert_array_equal(np.isnan(found).any(1), np.arange(6) == 3)


def loss(params, batch):
    """Its Hessian is the mean of the batch."""
    return jnp.mean(0.5 * batch * params**2)


@pytest.mark.parametrize("inside", [True, False])
def test_the_curvature_pass_is_inside_or_around(inside):
    """Oracle: a run counter, and the diagonal in closed form."""
    ran = []

    def value_fn(params, batch):
        jax.debug.callback(lambda: ran.append(1))
        return loss(params, batch)

    tx, key = ok.optim.scale_by_adahessian(eps=0.0), jr.key(0)
    if inside:
        tx = ok.optim.accumulate(
            ok.optim.with_hutchinson(tx, key=key), every=4, hessian_diag=False
        )
    else:
        tx = ok.optim.with_hutchinson(ok.optim.accumulate(tx, every=4), key=key)
    params = jnp.ones(())

    @jax.jit
    def step(state, batch):
        grads = jax.grad(loss)(params, batch)
        return tx.update(grads, state, params, value_fn=value_fn, batch=batch)

    state = tx.init(params)
    for x in (1.0, 2.0, 3.0, 6.0):
        updates, state = step(state, jnp.array([x]))
    jax.effects_barrier()
    assert len(ran) == (1 if inside else 4)
    assert_allclose(updates, 3.0 / (6.0 if inside else 3.0), rtol=1e-12)


def test_sums_of_bfloat16_do_not_stall():
    """Oracle: the mean of ones; a bfloat16 sum of ones stops at 256."""
    ones = jnp.ones((600, 2), jnp.bfloat16)
    tx = ok.optim.accumulate(ok.optim.scale_by_adahessian(eps=0.0), every=600)
    updates, _, state = run(tx, ones[0], ones, ones)
    assert updates.dtype == jnp.bfloat16
    assert state.grads.dtype == state.hessian_diag.dtype == jnp.float32
    assert_array_equal(updates[-1], 1.0)


def test_it_keeps_shardings_and_survives_donation(rng):
    """Oracle: one device."""
    grads = jnp.asarray(rng.standard_normal((6, 8)))
    params = jnp.arange(8.0)
    tx = ok.optim.accumulate(ok.optim.adahessian(0.1), every=2)
    expected = run(tx, params, grads, grads**2)[1]
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    sharding = NamedSharding(mesh, PartitionSpec("x"))

    def step(params, state, g):
        updates, state = tx.update(g, state, params, hessian_diag=g**2)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(mesh):
        found = jax.device_put(params, sharding)
        state, step = tx.init(found), jax.jit(step, donate_argnums=(0, 1))
        for g in grads:
            found, state = step(found, state, jax.device_put(g, sharding))
    assert step._cache_size() == 1
    assert_allclose(jax.device_get(found), expected, rtol=1e-12)
    for leaf in jax.tree.leaves(state):
        assert not leaf.ndim or leaf.sharding.is_equivalent_to(sharding, 1)


@pytest.mark.parametrize("jit", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_on_an_explicit_mesh_it_runs_outside_of_jit_too(jit):
    """Oracle: closed form, with the sharding of the gradient."""
    mesh = jax.make_mesh((4,), ("x",), (AxisType.Explicit,), devices=jax.devices()[:4])
    tx = ok.optim.accumulate(optax.sgd(1.0), every=2)
    with jax.set_mesh(mesh):
        grads = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, PartitionSpec("x")))
        state, step = tx.init(grads), jit(tx.update)
        zeros, state = step(grads, state)
        updates, _ = step(3 * grads, state)
    for found, factor in ((zeros, 0.0), (updates, -2.0)):
        assert found.sharding.spec == PartitionSpec("x")
        assert_array_equal(found, factor * np.arange(8.0))


@pytest.mark.usefixtures("standard_promotion")
def test_under_a_mask_the_diagonal_is_hidden_like_the_gradient():
    """Oracle: closed form; `hessian_diag` is of the whole params."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = ok.optim.accumulate(ok.optim.scale_by_adahessian(eps=0.0), every=2)
    tx = optax.masked(tx, {"a": True, "b": False})
    state = tx.init(params)
    diag = jax.tree.map(lambda p: 4 * p, params)
    for _ in range(2):
        updates, state = tx.update(params, state, params, hessian_diag=diag)
    assert_allclose(updates["a"], 0.25, rtol=1e-12)
    assert_allclose(updates["b"], 1.0)


def test_wrong_arguments_are_named():
    """Oracle: the message."""
    with pytest.raises(ValueError, match=r"`ok.optim.accumulate`.*every >= 1, got 0"):
        ok.optim.accumulate(optax.sgd(0.1), every=0)
    ones = jnp.ones(2)
    tx = ok.optim.accumulate(ok.optim.adahessian(0.1), every=2, hessian_diag=False)
    with pytest.raises(
        ValueError, match=r"`ok.optim.accumulate` got hessian_diag=,.*False"
    ):
        tx.update(ones, tx.init(ones), hessian_diag=ones)
    with pytest.raises(ValueError, match=r"`ok.optim.accumulate`.*got \(3,\)"):
        tx.update(jnp.ones(3), tx.init(ones))
    tx = ok.optim.accumulate(ok.optim.adahessian(0.1), every=2)
    with pytest.raises(ValueError, match=r"hessian_diag.*\(3,\)|\(3,\).*hessian_diag"):
        tx.update(ones, tx.init(ones), hessian_diag=jnp.ones(3))
    with pytest.raises(ValueError, match=r"hessian_diag=None"):
        tx.update(ones, tx.init(ones))
