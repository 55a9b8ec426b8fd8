"""The Gauss-Newton matrix beside the Hessian, and what a product costs."""

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import problems
from precision import assert_allclose

import optkit as ok


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


def test_linearised_products_do_not_pass_through_the_model_again():
    # oracle: a count of the calls of the model
    calls = []

    def model(w, x):
        calls.append(1)
        return x * w**2

    x = jnp.array([1.0, 2.0])
    C = lx.linearise(ok.gauss_newton(model, ok.SquaredError(), x, x))
    del calls[:]
    assert_allclose(C.mv(jnp.ones(2)), [2.0, 32.0])
    assert not calls
