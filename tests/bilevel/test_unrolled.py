import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from precision import assert_allclose
from problems import (
    Q2_A,
    Q2_B,
    Q2_T,
    Q2_X,
    q2_hypergradient,
    q2_lower,
    q2_solution,
    q2_upper,
)

import optkit as ok

SGD = optax.sgd(0.4)


def estimate(method, x, y, upper=q2_upper, lower=q2_lower, batch=None):
    return jax.jit(ok.bilevel.hypergradient(upper, lower, method=method))(x, y, batch)


@pytest.mark.parametrize(
    "method", [ok.bilevel.Unrolled(3, SGD), ok.bilevel.ForwardMode(3, SGD)]
)
def test_three_steps_from_zero(method):
    """Oracle: numbers computed once in NumPy, the same forward and in reverse."""
    gradient, info = estimate(method, Q2_X, jnp.zeros(2))
    assert_allclose(gradient, (2.3015776, 1.0790144), rtol=1e-9)
    y = np.zeros(2)
    for _ in range(3):
        y = y - 0.4 * Q2_A @ (y - q2_solution(Q2_X))
    assert_allclose(info.y, y, rtol=1e-12)
    slope = Q2_A @ (y - q2_solution(Q2_X))
    assert_allclose(info.residual_norm, np.linalg.norm(slope), rtol=1e-12)
    assert np.isnan(info.linear_residual)


@pytest.mark.parametrize("K", [1, 2, 5, 20])
def test_truncation_at_the_fixed_point_is_the_neumann_series(K):
    """Oracle: K terms of the series, to rounding; and the bound on what is left out."""
    y = q2_solution(Q2_X)
    cut, _ = estimate(ok.bilevel.Unrolled(K + 5, SGD, truncate=K), Q2_X, y)
    series, _ = estimate(ok.bilevel.Implicit(ok.Neumann(K, 0.4)), Q2_X, y)
    assert_allclose(cut, series, rtol=1e-14)
    error = np.linalg.norm(np.asarray(cut) - q2_hypergradient(Q2_X))
    convexity = np.linalg.eigvalsh(Q2_A)[0]
    rate = 1 - 0.4 * convexity
    bound = rate**K / (0.4 * convexity) * np.linalg.norm(y - Q2_T)
    assert error <= bound * 0.4 * np.linalg.norm(Q2_B, 2)


def lower(x, y, batch):
    """A lower objective on trees: not quadratic, with a batch."""
    fit = jnp.tanh(y["w"] @ batch) - jnp.sum(x["shift"])
    return 0.5 * fit**2 + 0.5 * jnp.sum(jnp.exp(x["decay"]) * y["w"] ** 2)


def upper(x, y, batch):
    return jnp.sum((y["w"] - batch) ** 2) * jnp.exp(0.1 * jnp.sum(x["decay"]))


X = {"decay": jnp.array([0.1, -0.4]), "shift": jnp.array(0.3), "none": None}
Y = {"w": jnp.array([0.5, -0.7])}
MOMENTUM = optax.sgd(0.3, momentum=0.8)


def clip(y):
    return jax.tree.map(lambda a: jnp.clip(a, -0.6, 0.45), y)


@pytest.mark.parametrize(
    "method",
    [
        ok.bilevel.Unrolled(7, MOMENTUM, project_y=clip),
        ok.bilevel.Unrolled(7, MOMENTUM, project_y=clip, checkpoint=3),
        ok.bilevel.Unrolled(7, MOMENTUM, project_y=clip, checkpoint=50),
        ok.bilevel.ForwardMode(7, MOMENTUM, project_y=clip),
        ok.bilevel.ForwardMode(7, MOMENTUM, project_y=clip, chunk=2),
    ],
    ids=["reverse", "checkpoint=3", "checkpoint=50", "forward", "chunk=2"],
)
@pytest.mark.parametrize("is_shared", [True, False])
def test_every_mode_is_the_derivative_of_the_loop(key, method, is_shared):
    """Oracle: `jax.grad` of seven steps written out."""
    noise = jr.normal(key, (7, 2))
    batch = noise[0]
    if is_shared:
        noise = jnp.broadcast_to(batch, (7, 2))
    else:
        batch = ok.bilevel.Batches(upper_x=batch, lower_y=noise)

    @jax.jit
    def value(x):
        y, state = Y, MOMENTUM.init(Y)
        for sample in noise:
            updates, state = MOMENTUM.update(jax.grad(lower, 1)(x, y, sample), state)
            y = clip(optax.apply_updates(y, updates))
        return upper(x, y, noise[0])

    gradient, info = estimate(method, X, Y, upper, lower, batch)
    expected = jax.grad(value)(X)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12), gradient, expected)
    assert_allclose(info.value, value(X), rtol=1e-12)
    assert_allclose(info.direct["decay"], 0.1 * info.value, rtol=1e-12)


def test_truncation_with_separate_batches_differentiates_the_last_ones(key):
    """Oracle: the derivative of the last steps alone, from the end of the others."""
    noise = jr.normal(key, (5, 2))
    sgd = optax.sgd(0.3)
    given = ok.bilevel.Batches(upper_x=noise[0], lower_y=noise)
    cut, info = estimate(
        ok.bilevel.Unrolled(5, sgd, truncate=2), X, Y, upper, lower, given
    )
    first = ok.bilevel.Batches(upper_x=noise[0], lower_y=noise[:3])
    _, early = estimate(ok.bilevel.Unrolled(3, sgd), X, Y, upper, lower, first)
    rest = ok.bilevel.Batches(upper_x=noise[0], lower_y=noise[3:])
    late, end = estimate(ok.bilevel.Unrolled(2, sgd), X, early.y, upper, lower, rest)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-12), cut, late)
    assert_allclose(info.y["w"], end.y["w"], rtol=1e-12)


def test_memory_grows_only_with_the_steps_that_are_kept():
    """Oracle: the compiler's own count of temporary bytes."""
    y = jnp.zeros(20_000)

    def decay(x, y, batch):
        return 0.5 * jnp.sum(jnp.exp(x) * (y - 1) ** 2)

    def temporaries(method):
        fn = ok.bilevel.hypergradient(decay, decay, method=method)
        compiled = jax.jit(lambda x, y: fn(x, y, None)[0]).lower(jnp.zeros(()), y)
        return compiled.compile().memory_analysis().temp_size_in_bytes / y.nbytes

    full = temporaries(ok.bilevel.Unrolled(100, SGD))
    assert 100 <= full < 110
    assert temporaries(ok.bilevel.Unrolled(100, SGD, truncate=10)) < 20
    assert temporaries(ok.bilevel.Unrolled(100, SGD, checkpoint=10)) < 35
    assert temporaries(ok.bilevel.ForwardMode(100, SGD)) < 10


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="num_steps >= 1"):
        ok.bilevel.Unrolled(0, SGD)
    with pytest.raises(TypeError):
        ok.bilevel.Unrolled(3, 0.1)
    with pytest.raises(ValueError, match=r"truncate <= 3, .*got truncate=4"):
        ok.bilevel.Unrolled(3, SGD, truncate=4)
    with pytest.raises(ValueError, match="checkpoint >= 1"):
        ok.bilevel.Unrolled(3, SGD, checkpoint=0)
    with pytest.raises(ValueError, match="chunk >= 1"):
        ok.bilevel.ForwardMode(3, SGD, chunk=0)
    method = ok.bilevel.Unrolled(3, SGD)
    batch = ok.bilevel.Batches(lower_y=jnp.zeros((4, 2)))
    with pytest.raises(ValueError, match="leading axis of 3"):
        ok.bilevel.hypergradient(upper, lower, method=method)(X, Y, batch)
