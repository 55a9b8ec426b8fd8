"""Adan against the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Adan
from precision import FLOAT, assert_allclose

import optkit as ok


def schedule(step):
    """A learning rate that falls; for the step count of JAX or of Python."""
    return jnp.asarray(0.1 / (1 + np.arange(32)))[step]


OPTIONS = {
    "plain": {},
    "prox": {"weight_decay": 0.1},
    "no_prox": {"weight_decay": 0.1, "no_prox": True},
    "decays": {"betas": (0.9, 0.8, 0.95), "eps": 1e-3},
    "zero_decays": {"betas": (0.0, 0.0, 0.0)},
    "schedule": {"lr": schedule, "weight_decay": 0.3},
    "schedule_no_prox": {"lr": schedule, "weight_decay": 0.3, "no_prox": True},
}


def ours(lr=0.1, betas=(0.98, 0.92, 0.99), eps=1e-8, weight_decay=0.0, no_prox=False):
    """`ok.optim.adan` with the authors' argument names."""
    return ok.optim.adan(lr, *betas, eps, weight_decay, proximal=not no_prox)


def steps(tx, params, grads_fn, num_steps, state=None):
    """The parameters after each of `num_steps` updates, and the last state."""
    state = tx.init(params) if state is None else state
    trace = []
    for i in range(num_steps):
        updates, state = tx.update(grads_fn(i, params), state, params)
        params = optax.apply_updates(params, updates)
        trace.append(np.asarray(params))
    return trace, state


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.9, 0.828050275, 0.827312898)),
        ({"weight_decay": 0.1}, (0.891089110, 0.811029093, 0.802269026)),
        ({"weight_decay": 0.1, "no_prox": True}, (0.89, 0.809150275, 0.800321396)),
    ],
)
def test_three_steps_of_the_official_code(options, expected):
    """Oracle: numbers of the official code for gradients 1, 1/2, -1/4."""
    grads = jnp.array([1.0, 0.5, -0.25])
    trace, _ = steps(ours(**options), jnp.array(1.0), lambda i, _: grads[i], 3)
    assert_allclose(trace, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("problem", ["quadratic", "random_gradients"])
def test_twenty_steps_equal_the_transcription(options, problem, rng):
    """Oracle: NumPy transcription of the authors' code."""
    root = rng.standard_normal((7, 7))
    hessian, noise = root @ root.T, rng.standard_normal((20, 7))
    theta = rng.standard_normal(7)

    def grad(i, params):
        return hessian @ params if problem == "quadratic" else noise[i]

    oracle = Adan(theta, **({"lr": 0.1} | options))
    expected = [oracle.step(np.asarray(grad(i, oracle.theta))) for i in range(20)]
    trace, _ = steps(
        ours(**options), jnp.asarray(theta), lambda i, p: jnp.asarray(grad(i, p)), 20
    )
    assert_allclose(trace, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_restart_equals_restart_opt(weight_decay, rng):
    """Oracle: NumPy transcription, restarted after steps 5 and 12."""
    theta, grads = rng.standard_normal(4), rng.standard_normal((20, 4))
    oracle = Adan(theta, schedule, weight_decay=weight_decay)
    tx = ok.optim.adan(schedule, weight_decay=weight_decay)
    params, state = jnp.asarray(theta), tx.init(jnp.asarray(theta))
    for i, grad in enumerate(grads):
        if i in {5, 12}:
            oracle.restart_opt()
            state = jax.jit(ok.optim.restart_adan)(state)
        updates, state = tx.update(jnp.asarray(grad), state, params)
        params = optax.apply_updates(params, updates)
        assert_allclose(params, oracle.step(grad), rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_restart_finds_adan_inside_wrappers():
    """Oracle: identity; every wrapper's own state stays."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = optax.MultiSteps(
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(
                optax.inject_hyperparams(ok.optim.adan)(0.1), {"a": True, "b": False}
            ),
        ),
        every_k_schedule=1,
    )
    _, state = tx.update(params, tx.init(params), params)
    restarted = ok.optim.restart_adan(state)
    adan = restarted.inner_opt_state[1].inner_state.inner_state[0]
    assert int(adan.count) == 0
    assert not np.any(adan.m["a"])
    assert_allclose(adan.prev_grad["a"], 1 / np.sqrt(5))
    assert int(restarted.gradient_step) == 1
    assert jax.tree.structure(restarted) == jax.tree.structure(state)


def test_restart_of_a_state_without_adan_says_so():
    """Oracle: the message."""
    state = optax.adam(0.1).init(jnp.ones(2))
    with pytest.raises(
        TypeError, match=r"`ok.optim.restart_adan` needs .*`AdanState`.*got"
    ):
        ok.optim.restart_adan(state)


def test_masked_decay_shrinks_only_the_chosen_leaves():
    """Oracle: closed form; both leaves still take Adan's step."""
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    tx = ok.optim.adan(0.1, weight_decay=0.5, mask={"w": True, "b": False})
    updates, _ = tx.update(params, tx.init(params), params)
    assert_allclose(1 + updates["w"], (1 - 0.1) / 1.05, rtol=1e-7)
    assert_allclose(1 + updates["b"], 1 - 0.1, rtol=1e-7)


@pytest.mark.parametrize(
    ("state_dtype", "rtol"), [(jnp.bfloat16, 2e-2), (jnp.float32, 1e-6)]
)
def test_state_dtype_stores_m_and_v_and_only_them(state_dtype, rtol, rng):
    """Oracle: NumPy transcription, to the rounding of the stored moments."""
    theta, grads = rng.standard_normal(50), rng.standard_normal((20, 50))
    oracle = Adan(theta, 0.1)
    expected = [oracle.step(grad) for grad in grads][-1]
    tx = ok.optim.adan(0.1, state_dtype=state_dtype)
    trace, state = steps(tx, jnp.asarray(theta), lambda i, _: jnp.asarray(grads[i]), 20)
    assert state[0].m.dtype == state[0].v.dtype == state_dtype
    assert state[0].n.dtype == state[0].prev_grad.dtype == FLOAT
    assert np.linalg.norm(trace[-1] - expected) <= rtol * np.linalg.norm(
        expected - theta
    )


def test_bfloat16_params_keep_float32_moments_that_do_not_stall():
    """Oracle: the mean of a constant is the constant; a bf16 average stops at 0.84."""
    tx = ok.optim.scale_by_adan()
    params = jnp.zeros(2, jnp.bfloat16)
    grads = jnp.ones(2, jnp.bfloat16)
    step = jax.jit(tx.update)
    state = tx.init(params)
    for _ in range(1000):
        updates, state = step(grads, state)
    assert updates.dtype == jnp.bfloat16
    assert state.m.dtype == state.v.dtype == state.n.dtype == jnp.float32
    assert_allclose(state.n, 1 - 0.99**1000, rtol=1e-5)


def test_complex_leaves_are_scaled_by_their_modulus():
    """Oracle: rotating every gradient rotates every update."""
    rotation = np.exp(0.7j)
    grads = jnp.array([[1.0, -2.0], [0.5, 1.0], [3.0, 0.1]])
    tx = ok.optim.scale_by_adan()
    real, turned = tx.init(grads[0]), tx.init(rotation * grads[0].astype(complex))
    assert turned.n.dtype == FLOAT
    for grad in grads:
        u, real = tx.update(grad, real)
        w, turned = tx.update(rotation * grad.astype(complex), turned)
        assert_allclose(w, rotation * u.astype(complex), rtol=1e-12)


def test_an_eager_state_does_not_share_the_gradient_s_buffer():
    """Oracle: identity; donating the state leaves the caller's gradient alive."""
    tx, grads = ok.optim.scale_by_adan(), jnp.ones(3)
    _, state = tx.update(grads, tx.init(grads))
    jax.jit(tx.update, donate_argnums=1)(grads, state)
    assert_allclose(grads, 1.0)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ok.optim.scale_by_adan(b1=-0.1),
            r"`ok.optim.scale_by_adan`.*b1.*-0.1.*1 - beta",
        ),
        (
            lambda: ok.optim.adan(0.1, b1=-0.1),
            r"`ok.optim.adan`.*b1.*-0.1.*1 - beta",
        ),
        (lambda: ok.optim.adan(0.1, b2=1.5), r"b2=1.5"),
        (lambda: ok.optim.adan(0.1, b3=1.0), r"b3=1.0"),
        (lambda: ok.optim.adan(0.1, b3=float("nan")), r"b3=nan"),
        (lambda: ok.optim.adan(0.1, eps=-1e-8), r"eps.*-1e-08"),
        (lambda: ok.optim.adan(-0.1), r"`ok.optim.adan`.*learning_rate.*-0.1"),
        (lambda: ok.optim.adan(float("inf")), r"learning_rate=inf"),
        (
            lambda: ok.optim.adan(0.1, weight_decay=-1.0),
            r"`ok.optim.adan`.*weight_decay.*-1.0",
        ),
        (
            lambda: ok.optim.proximal_weight_decay(0.1, -1.0),
            r"`ok.optim.proximal_weight_decay`",
        ),
        (lambda: ok.optim.adan(0.1, b1="0.1"), r"`ok.optim.adan`.*number.*'0.1'"),
        (lambda: ok.optim.adan(0.1, b1=True), r"`ok.optim.adan`.*number.*True"),
        (
            lambda: ok.optim.adan(0.1, state_dtype=jnp.int8),
            r"state_dtype.*int8.*float32",
        ),
    ],
)
def test_bad_arguments_raise_at_construction(make, match):
    """Oracle: the message names the call, the value and the next step."""
    with pytest.raises((ValueError, TypeError), match=match):
        make()


@pytest.mark.parametrize(
    ("proximal", "match"),
    [(True, r"`ok.optim.adan` needs params.*`tx.update"), (False, r"params.*`update`")],
)
def test_weight_decay_without_params_says_how_to_pass_them(proximal, match):
    """Oracle: the message, ours or that of optax."""
    tx = ok.optim.adan(0.1, weight_decay=0.1, proximal=proximal)
    with pytest.raises(ValueError, match=match):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))


def test_integer_params_are_refused_with_their_path():
    """Oracle: the message."""
    params = {"w": jnp.ones(2), "num_calls": jnp.array(3)}
    with pytest.raises(TypeError, match=r"int\d\d at params\['num_calls'\].*masked"):
        ok.optim.adan(0.1).init(params)


def test_a_square_that_overflows_is_nan_and_does_not_freeze_its_entry():
    """Oracle: identity. Divided by infinity, the entry would never move again."""
    tx, params = ok.optim.scale_by_adan(), jnp.zeros(2, jnp.float32)
    grads = jnp.array([1e30, 1.0], jnp.float32)
    updates, _ = tx.update(grads, tx.init(params))
    assert np.isnan(updates[0])
    assert_allclose(updates[1], 1.0, rtol=1e-6)
