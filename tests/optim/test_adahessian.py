"""AdaHessian against the authors' code."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from oracles import AdaHessian, adahessian_conv_kernels, adahessian_rows
from precision import assert_allclose

import optkit as ok


def schedule(step):
    """A learning rate that falls; for the step count of JAX or of Python."""
    return jnp.asarray(0.1 / (1 + np.arange(32)))[step]


OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.3},
    "decays": {"betas": (0.5, 0.8), "eps": 1e-2},
    "no_memory": {"betas": (0.0, 0.0)},
    "half_power": {"hessian_power": 0.5},
    "schedule": {"lr": schedule, "weight_decay": 0.3, "hessian_power": 0.7},
}


def ours(
    lr=0.1, betas=(0.9, 0.999), eps=1e-4, hessian_power=1.0, weight_decay=0.0, **rest
):
    """`ok.optim.adahessian` with the authors' argument names."""
    return ok.optim.adahessian(lr, *betas, eps, hessian_power, weight_decay, **rest)


def trace(tx, theta, grads, diags):
    """The parameters after each step."""

    def body(carry, inputs):
        params, state = carry
        g, h = inputs
        updates, state = tx.update(g, state, params, hessian_diag=h)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    theta = jnp.asarray(theta)
    carry = (theta, tx.init(theta))
    return jax.lax.scan(body, carry, (jnp.asarray(grads), jnp.asarray(diags)))[1]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_twenty_steps_equal_the_transcription(options, rng):
    """Oracle: NumPy transcription of the authors' code, on signed diagonals."""
    theta, grads, diags = (rng.standard_normal(s) for s in (7, (20, 7), (20, 7)))
    oracle = AdaHessian(theta, **({"lr": 0.1} | options))
    expected = [oracle.step(g, np.abs(h)) for g, h in zip(grads, diags, strict=True)]
    found = trace(ours(**options), theta, grads, diags)
    assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def conv_to_torch(h):
    """HWIO to the authors' OIHW; width first, then inputs and outputs, to (o, i, w)."""
    return np.transpose(h, (3, 2, 0, 1) if h.ndim == 4 else range(h.ndim)[::-1])


def conv_from_torch(h):
    return np.transpose(h, (2, 3, 1, 0) if h.ndim == 4 else range(h.ndim)[::-1])


# The shape in JAX's layout, our average, and the authors' of their layout.
AVERAGES = {
    "conv": ((3, 2, 4, 5), ok.optim.average_conv_kernels, adahessian_conv_kernels),
    "conv_matrix": ((4, 5), ok.optim.average_conv_kernels, lambda h: h),
    "rows_matrix": ((4, 5), ok.optim.average_rows, adahessian_rows),
    "rows_vector": ((4,), ok.optim.average_rows, lambda h: h),
    "rows_conv_1d": ((3, 4, 5), ok.optim.average_rows, adahessian_rows),
    "rows_conv": ((3, 2, 4, 5), ok.optim.average_rows, adahessian_conv_kernels),
}


@pytest.mark.parametrize("signed", [False, True], ids=["modulus", "signed"])
@pytest.mark.parametrize(
    ("shape", "average", "theirs"), AVERAGES.values(), ids=AVERAGES.keys()
)
def test_twenty_averaged_steps_equal_the_authors(shape, average, theirs, signed, rng):
    """Oracle: NumPy transcription in PyTorch's layout; |h| in the code, h the paper."""
    theta, grads, diags = (
        rng.standard_normal(s) for s in (shape, *2 * ((20, *shape),))
    )
    oracle = AdaHessian(conv_to_torch(theta), 0.1, weight_decay=0.1)
    expected = []
    for g, h in zip(grads, diags, strict=True):
        h = theirs(conv_to_torch(h if signed else np.abs(h)))
        expected.append(conv_from_torch(oracle.step(conv_to_torch(g), h)))
    average = partial(average, signed=True) if signed else average
    tx = ok.optim.adahessian(0.1, weight_decay=0.1, average=average)
    assert_allclose(trace(tx, theta, grads, diags), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("b1", [0.0, 0.9])
@pytest.mark.parametrize("b2", [0.0, 0.999])
def test_a_diagonal_quadratic_is_solved_in_one_step(b1, b2, key):
    """Oracle: closed form, for any probe and any decays."""
    a = jnp.array([1.0, 10.0, 1000.0])
    params = jnp.array([3.0, -2.0, 0.5])
    f = ok.value_grad_and_diag(lambda x: 0.5 * jnp.sum(a * x**2))
    tx = ok.optim.adahessian(1.0, b1, b2, eps=0.0)
    for k in jr.split(key, 2):
        _, grads, diag = f(params, key=k)
        updates, _ = tx.update(grads, tx.init(params), params, hessian_diag=diag)
        assert_allclose(params + updates, 0.0, atol=1e-14)


def test_the_scale_is_the_norm_of_a_row_of_the_hessian(key):
    """Oracle: closed form for [[2, 1], [1, 2]]: 1 or 3, in the mean square sqrt(5)."""
    H = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    f = ok.value_grad_and_diag(lambda x: 0.5 * x @ H @ x)
    tx = ok.optim.scale_by_adahessian(b2=0.0)
    params = jnp.ones(2)

    def v(key):
        _, grads, diag = f(params, key=key)
        return tx.update(grads, tx.init(params), hessian_diag=diag)[1].v

    squares = jax.jit(jax.vmap(v))(jr.split(key, 400))
    assert set(np.unique(squares)) == {1.0, 9.0}
    assert_allclose(squares.mean(0), 5.0, atol=4 * 4 / np.sqrt(400))


def test_second_moments_of_bfloat16_params_do_not_stall():
    """Oracle: the mean of a constant is the constant; a bf16 average stops at 0.5."""
    tx = ok.optim.scale_by_adahessian(state_dtype=jnp.bfloat16)
    ones = jnp.ones(2, jnp.bfloat16)
    step = jax.jit(lambda state: tx.update(ones, state, hessian_diag=ones))
    state = tx.init(ones)
    for _ in range(1000):
        updates, state = step(state)
    assert updates.dtype == state.m.dtype == jnp.bfloat16
    assert state.v.dtype == jnp.float32
    assert_allclose(state.v, 1 - 0.999**1000, rtol=1e-5)


def test_injected_hyperparams_reach_every_scalar(rng):
    """Oracle: the optimizer made with the constants."""
    theta, grads, diags = (rng.standard_normal(s) for s in ((4, 5), *2 * ((3, 4, 5),)))
    options = {"eps": 1e-2, "hessian_power": 0.5, "weight_decay": 0.1}
    make = optax.inject_hyperparams(ok.optim.adahessian, static_args=("average",))
    options |= {"average": ok.optim.average_rows}
    with jax.numpy_dtype_promotion("standard"):
        found = trace(make(0.1, **options), theta, grads, diags)
        expected = trace(ok.optim.adahessian(0.1, **options), theta, grads, diags)
    assert_allclose(found, expected, rtol=1e-10)


def test_masked_decay_shrinks_only_the_chosen_leaves():
    """Oracle: closed form; both leaves still take AdaHessian's step."""
    params = {"w": jnp.ones(2), "b": jnp.ones(2)}
    mask = {"w": True, "b": False}
    tx = ok.optim.adahessian(0.1, eps=0.0, weight_decay=0.5, mask=mask)
    updates, _ = tx.update(params, tx.init(params), params, hessian_diag=params)
    assert_allclose(1 + updates["w"], 1 - 0.1 - 0.05, rtol=1e-12)
    assert_allclose(1 + updates["b"], 1 - 0.1, rtol=1e-12)


def test_a_missing_diagonal_names_both_ways_to_it():
    """Oracle: the message."""
    tx, ones = ok.optim.adahessian(0.1), jnp.ones(2)
    with pytest.raises(ValueError, match=r"value_grad_and_diag.*with_hutchinson") as e:
        tx.update(ones, tx.init(ones), ones)
    assert "`ok.optim.adahessian` needs hessian_diag" in str(e.value)


TWO = {"w": jnp.ones(3), "b": jnp.ones(2)}


@pytest.mark.parametrize(
    ("diag", "error", "match"),
    [
        ({"w": jnp.ones(3)}, ValueError, r"hessian_diag in the structure"),
        (TWO | {"b": jnp.ones(3)}, ValueError, r"hessian_diag\['b'\]"),
        pytest.param(
            TWO | {"b": jnp.ones(2, jnp.float32)},
            TypeError,
            r"float32 at hessian_diag\['b'\]",
            marks=pytest.mark.x64,
        ),
        (TWO | {"b": jnp.ones(2, int)}, TypeError, r"int\d\d at hessian_diag"),
    ],
    ids=["structure", "shape", "dtype", "integer"],
)
def test_a_diagonal_unlike_the_params_is_refused(diag, error, match):
    """Oracle: the message."""
    tx = ok.optim.adahessian(0.1)
    with pytest.raises(error, match=r"(?s)`ok.optim.adahessian` needs .*" + match):
        tx.update(TWO, tx.init(TWO), TWO, hessian_diag=diag)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ok.optim.scale_by_adahessian(b1=-0.1),
            r"`ok.optim.scale_by_adahessian`.*b1=-0.1",
        ),
        (
            lambda: ok.optim.adahessian(0.1, b1=-0.1),
            r"`ok.optim.adahessian`.*b1=-0.1",
        ),
        (lambda: ok.optim.adahessian(0.1, b2=1.0), r"b2=1.0"),
        (lambda: ok.optim.adahessian(0.1, eps=-1.0), r"eps=-1.0"),
        (lambda: ok.optim.adahessian(0.1, hessian_power=-1.0), r"hessian_power=-1.0"),
        (
            lambda: ok.optim.adahessian(-0.1),
            r"`ok.optim.adahessian`.*learning_rate=-0.1",
        ),
        (lambda: ok.optim.adahessian(0.1, weight_decay=-1.0), r"weight_decay=-1.0"),
        (lambda: ok.optim.adahessian(0.1, state_dtype=jnp.int8), r"state_dtype.*int8"),
    ],
)
def test_bad_arguments_raise_at_construction(make, match):
    """Oracle: the message names the call, the value and the next step."""
    with pytest.raises((ValueError, TypeError), match=match):
        make()


@pytest.mark.parametrize(
    ("average", "match"),
    [
        (
            ok.optim.average_blocks(5),
            r"divides the 12 entries of shape \(3, 4\), got 5",
        ),
        (
            lambda h: jnp.mean(h, 0),
            r"average.* in the shape .*\(4,\) at .*\['w'\], not \(3, 4\)",
        ),
    ],
)
def test_an_average_that_cannot_do_a_leaf_raises_in_init(average, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        ok.optim.adahessian(0.1, average=average).init({"w": jnp.ones((3, 4))})


@pytest.mark.parametrize("dtype", [complex, int])
def test_leaves_that_are_not_real_are_refused_with_their_path(dtype):
    """Oracle: the message."""
    with pytest.raises(TypeError, match=r"(complex|int)\d+ at params\['w'\].*masked"):
        ok.optim.adahessian(0.1).init({"w": jnp.ones(2, dtype)})


def test_a_square_that_overflows_is_nan_and_does_not_freeze_its_entry():
    """Oracle: identity. Divided by infinity, the entry would never move again."""
    tx, ones = ok.optim.scale_by_adahessian(), jnp.ones(2, jnp.float32)
    diag = jnp.array([1e30, 1.0], jnp.float32)
    updates, _ = tx.update(ones, tx.init(ones), hessian_diag=diag)
    assert np.isnan(updates[0])
    assert np.isfinite(updates[1])
