"""Hessian-vector products, and what a loss must return."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
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
