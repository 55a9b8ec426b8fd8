"""The Hessian as an operator: its leaves, and what a product costs."""

import jax
import jax.numpy as jnp
import lineax as lx
import pytest
from precision import assert_allclose

import optkit as ok


@pytest.mark.parametrize("leaf", [2.0, jnp.float32(2)])
def test_a_scalar_is_a_tree_of_params(leaf):
    # oracle: closed form
    one = jnp.ones_like(leaf)
    assert_allclose(ok.hvp(lambda x: x**3, leaf, one), 12.0)
    assert_allclose(ok.hessian(lambda x: x**3, leaf).as_matrix(), [[12.0]])


def test_args_may_be_integers_and_none():
    # oracle: closed form
    def loss(x, power, none):
        assert none is None
        return jnp.sum(x ** power.astype(x.dtype))

    C = ok.hessian(loss, jnp.array([1.0, 2.0]), jnp.int32(3), None)
    assert_allclose(jax.jit(lambda C: C.mv(jnp.ones(2)))(C), [6.0, 12.0])


def test_linearised_products_do_not_pass_through_the_loss_again():
    # oracle: a count of the calls of the loss
    calls = []

    def loss(x):
        calls.append(1)
        return jnp.sum(x**3)

    C = lx.linearise(ok.hessian(loss, jnp.array([1.0, 2.0])))
    del calls[:]
    assert_allclose(C.mv(jnp.ones(2)), [6.0, 12.0])
    assert not calls
