"""Unrolling: truncation, checkpoints, and where it equals the implicit rule."""

import jax
import jax.numpy as jnp
import pytest
from precision import FLOAT, assert_allclose

import optkit as ok

H = jnp.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.3], [0.1, -0.3, 0.7]])


def objective(y, theta):
    return 0.5 * y @ H @ y - jnp.vdot(theta, y) + 0.1 * jnp.sum(y**4)


def step(y, theta):
    return y - 0.3 * jax.grad(objective)(y, theta)


@pytest.mark.parametrize("terms", [1, 4])
def test_the_last_steps_at_the_fixed_point_are_the_neumann_series(terms):
    """Oracle: the identity, to machine precision, for minimum and fixed point."""
    theta = jnp.array([1.0, -0.5, 0.2])
    y = jax.jit(lambda: ok.unroll(step, theta, theta, num_steps=400))()
    last = {"num_steps": terms + 3, "truncate": terms}

    def gradient(fit):
        return jax.grad(lambda t: jnp.sum(jnp.sin(fit(y, t))))(theta)

    want = gradient(lambda y0, t: ok.unroll(step, y0, t, **last))
    series = ok.Neumann(terms, step_size=0.3)
    minimum = ok.implicit_minimum(objective, solver=series)(lambda y0, t: y0)
    fixed = ok.implicit_fixed_point(step, solver=ok.Neumann(terms))(lambda y0, t: y0)
    assert_allclose(gradient(minimum), want, rtol=1e-12)
    assert_allclose(gradient(fixed), want, rtol=1e-12)
    if terms == 1:
        one = ok.implicit_fixed_point(step, solver=ok.OneStep())(lambda y0, t: y0)
        assert_allclose(gradient(one), want, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 3}, {"truncate": 8}])
def test_a_derivative_is_that_of_a_plain_loop(options):
    """Oracle: a Python loop, with a stop_gradient at the truncation."""

    def loop(y, theta):
        for t in range(8):
            y = step(y, theta)
            if t == 7 - options.get("truncate", 8):
                y = jax.lax.stop_gradient(y)
        return jnp.sum(y)

    def ours(y, theta):
        return jnp.sum(ok.unroll(step, y, theta, num_steps=8, **options))

    y, theta = jnp.ones(3), jnp.array([1.0, -0.5, 0.2])
    got, want = (jax.jit(jax.grad(f, (0, 1)))(y, theta) for f in (ours, loop))
    assert_allclose(got[0], want[0], rtol=1e-12)
    assert_allclose(got[1], want[1], rtol=1e-12)


def test_memory_grows_only_with_the_steps_that_are_kept():
    """Oracle: the compiler's count of temporaries."""

    def temporaries(num_steps, **options):
        def loss(theta):
            y = ok.unroll(step_of_many, theta, theta, num_steps=num_steps, **options)
            return jnp.sum(y**2)

        executable = jax.jit(jax.grad(loss)).lower(jnp.ones(1000)).compile()
        return executable.memory_analysis().temp_size_in_bytes

    def step_of_many(y, theta):
        return y - 0.1 * (jnp.sinh(y) - theta)

    full = temporaries(400)
    assert full > 400 * 1000 * FLOAT.itemsize
    assert temporaries(400, checkpoint_every=20) < full / 5
    assert temporaries(400, truncate=4) < full / 20


def test_numbers_of_steps_are_checked():
    """Oracle: the messages."""
    with pytest.raises(
        ValueError, match="truncate <= 3, the number of steps, got truncate=4"
    ):
        ok.unroll(step, H[0], H[0], num_steps=3, truncate=4)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        ok.unroll(step, H[0], H[0], num_steps=0)
