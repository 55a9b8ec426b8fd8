"""Hessian- and Gauss-Newton-vector products, and what they cost."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import problems
import pytest
from jax.flatten_util import ravel_pytree
from precision import assert_allclose

import optkit as ok

PARAMS = problems.mlp_params(jr.key(2))
INPUTS, _, LABELS = problems.mlp_data(jr.key(1))
VECTOR = problems.mlp_params(jr.key(3))


def test_hvp_is_the_dense_hessian_times_the_vector():
    # oracle: dense
    H = problems.dense_hessian(problems.mlp_loss, PARAMS, INPUTS, LABELS)
    got = jax.jit(partial(ok.hvp, problems.mlp_loss))(PARAMS, VECTOR, INPUTS, LABELS)
    want = H @ ravel_pytree(VECTOR)[0]
    assert_allclose(ravel_pytree(got)[0], want, rtol=1e-10, atol=1e-12)


def test_one_pass_gives_value_gradient_and_product():
    # oracle: identity
    args = (INPUTS, LABELS)
    fused = jax.jit(ok.value_grad_and_hvp(problems.mlp_loss))
    got = fused(PARAMS, VECTOR, *args)
    want = (
        *jax.jit(jax.value_and_grad(problems.mlp_loss))(PARAMS, *args),
        jax.jit(partial(ok.hvp, problems.mlp_loss))(PARAMS, VECTOR, *args),
    )
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(g, w, rtol=1e-12, atol=1e-14)


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


def test_gauss_newton_is_the_hessian_of_a_linear_model():
    # oracle: identity
    inputs, targets, _ = problems.mlp_data(jr.key(1))
    w = jr.normal(jr.key(4), (3, 3))

    def model(w, x):
        return x @ w

    def loss(w, x, y):
        return ok.SquaredError()(model(w, x), y)

    G = ok.gauss_newton(model, ok.SquaredError(), w, inputs)  # no targets needed
    H = ok.hessian(loss, w, inputs, targets)
    assert_allclose(G.as_matrix(), H.as_matrix(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda x: x, ValueError, r"one real scalar, got shape \(2,\)"),
        (lambda x: (jnp.sum(x), x), ValueError, "one real scalar, got tuple"),
        (lambda x: jnp.sum(x) > 0, TypeError, "real floating scalar, got bool"),
    ],
)
def test_a_loss_that_is_not_a_scalar_raises(loss, error, match):
    # oracle: none, the messages
    x = jnp.ones(2)
    for call in (
        lambda: ok.hvp(loss, x, x),
        lambda: ok.value_grad_and_hvp(loss)(x, x),
        lambda: ok.hessian(loss, x).mv(x),
        lambda: ok.value_grad_and_diag(loss)(x, key=jr.key(0)),
        lambda: ok.gauss_newton(lambda p, _: p, loss, x, None).mv(x),
    ):
        with pytest.raises(error, match=match):
            call()
