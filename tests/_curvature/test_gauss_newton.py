"""The Gauss-Newton matrix beside the Hessian, and what a product costs."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import problems
import pytest
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


def masked_loss(z, y, where):
    return jnp.mean(jnp.sum((z - y) ** 4 + z**2, axis=-1))


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    "head",
    [ok.SoftmaxCrossEntropy(), ok.SquaredError(), masked_loss],
    ids=["softmax", "squared", "function"],
)
@pytest.mark.parametrize("chunk", [1, 4, 12])
def test_a_chunked_product_is_the_same(key, head, is_masked, chunk):
    """Oracle: the product with all examples at once; derivatives in params, too."""
    x, w = jr.normal(key, (12, 4)), {"w": jr.normal(jr.key(1), (4, 3))}
    labels = jr.randint(jr.key(2), (12,), 0, 3)
    if not isinstance(head, ok.SoftmaxCrossEntropy):
        labels = jr.normal(jr.key(2), (12, 3))
    where = jnp.arange(12) % 4 > 1 if is_masked else jnp.ones(12, bool)
    v = {"w": jr.normal(jr.key(3), (4, 3))}

    def product(w, chunk):
        C = ok.gauss_newton(
            lambda w, x: jnp.tanh(x @ w["w"]), head, w, x, labels, where, chunk=chunk
        )
        assert lx.is_positive_semidefinite(C)
        return lx.linearise(C).mv(v)["w"]

    both = jax.jit(
        lambda w, chunk: jax.jvp(lambda w: product(w, chunk), (w,), (v,)),
        static_argnums=1,
    )
    got, want = both(w, chunk), both(w, None)
    assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-14)
    assert_allclose(got[1], want[1], rtol=1e-12, atol=1e-14)


def test_chunks_hold_only_their_own_outputs():
    """Oracle: the compiler's count of temporary bytes; the outputs have 8 MB."""
    x, w = jnp.ones((512, 8), jnp.float32), jnp.ones((8, 4096), jnp.float32)

    def product(w, x, chunk):
        head = ok.SoftmaxCrossEntropy()
        C = ok.gauss_newton(lambda w, x: x @ w, head, w, x, chunk=chunk)
        return C.mv(w)

    def temporary(chunk):
        compiled = jax.jit(product, static_argnums=2).lower(w, x, chunk).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(None) > 2**23
    assert temporary(64) < 2**23


def test_a_chunk_must_divide_the_number_of_examples():
    """Oracle: the messages."""
    x, w = jnp.ones((6, 2)), jnp.ones(2)
    with pytest.raises(ValueError, match="divides the number of examples, 6, got 4"):
        ok.gauss_newton(lambda w, x: x @ w, ok.SquaredError(), w, x, chunk=4)
    with pytest.raises(ValueError, match="first axis of all leaves"):
        ok.gauss_newton(lambda w, x: x[0] @ w, ok.SquaredError(), w, (x, 1.0), chunk=2)


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
