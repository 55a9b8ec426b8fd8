import jax
import jax.numpy as jnp
import optax
import pytest
from precision import assert_allclose

from optkit._check import Check
from optkit._solver.move import mover, residual

CHECK = Check("ok.f")
Y = {"w": jnp.array([1.0, -2.0]), "none": None}
GRADIENT = {"w": jnp.array([0.5, 0.5]), "none": None}


def positive(y):
    return jax.tree.map(lambda a: jnp.maximum(a, 0), y)


def test_a_move_is_a_step_of_the_transform_then_the_projection():
    """Oracle: two steps of gradient descent with momentum, by hand."""
    move = mover(CHECK, "y", positive, inner=optax.sgd(1.0, momentum=0.5))
    y, opt_state = move(GRADIENT, move.init(Y), Y)
    assert_allclose(y["w"], [0.5, 0.0])
    assert y["none"] is None
    y, _ = move(GRADIENT, opt_state, y)
    assert_allclose(y["w"], [0.0, 0.0])
    free = mover(CHECK, "y", inner=optax.sgd(1.0))
    y, _ = free(GRADIENT, free.init(Y), Y)
    assert_allclose(y["w"], [0.5, -2.5])


def test_a_move_passes_extra_arguments_to_transforms_that_take_them():
    """Oracle: the step size that was passed."""

    def update(updates, state, params=None, *, penalty, **extra):
        return jax.tree.map(lambda g: -penalty * g, updates), state

    scaled = optax.GradientTransformationExtraArgs(lambda params: (), update)
    move = mover(CHECK, "y", inner=optax.chain(scaled, optax.identity()))
    y, _ = move(GRADIENT, move.init(Y), Y, penalty=2.0)
    assert_allclose(y["w"], [0.0, -3.0])
    plain = mover(CHECK, "y", inner=optax.sgd(1.0))
    y, _ = plain(GRADIENT, plain.init(Y), Y, penalty=2.0)
    assert_allclose(y["w"], [0.5, -2.5])


def test_the_residual_is_zero_where_the_step_is_stationary():
    """Oracle: closed form. At y = 0 a slope > 0 points out of y >= 0."""
    at_bound = {"w": jnp.zeros(2), "none": None}
    move = mover(CHECK, "y", positive, inner=optax.sgd(1.0))
    assert move.residual(GRADIENT, at_bound) == 0
    assert_allclose(residual(GRADIENT, at_bound, None), 0.5**0.5)
    ascent = jax.tree.map(jnp.negative, GRADIENT)
    assert_allclose(move.residual(ascent, at_bound), 0.5**0.5)


def test_mistakes_are_named_by_the_argument_of_the_user():
    """Oracle: the messages."""
    with pytest.raises(TypeError, match=r"`ok\.f` needs an optax transform for outer"):
        mover(CHECK, "x", outer=0.1)
    move = mover(CHECK, "y", lambda y: y["w"], inner=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"project_y\(y\) in the structure of y"):
        move(GRADIENT, move.init(Y), Y)
    growing = optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda g, s, p=None: (g, jnp.append(s, 0.0))
    )
    move = mover(CHECK, "y", inner=growing)
    with pytest.raises(ValueError, match="state that the transform of y returns"):
        move(GRADIENT, move.init(Y), Y)
