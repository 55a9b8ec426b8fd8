"""Loss heads: value, Hessian and random square root in closed form."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from precision import assert_allclose

import optkit as ok

OUTPUTS = jr.normal(jr.key(0), (4, 2, 3))
VECTOR = jr.normal(jr.key(1), (4, 2, 3))
LABELS = jr.randint(jr.key(2), (4, 2), 0, 3)
KEPT = jr.bernoulli(jr.key(3), 0.6, (4, 2))
KEPT_EXAMPLES = jnp.array([True, False, True, True])


def cross_entropy(z, labels, where=None):
    log_p = jax.nn.log_softmax(z)
    terms = -jnp.sum(jax.nn.one_hot(labels, 3) * log_p, axis=-1)
    return jnp.mean(terms, where=where)


def square(z, y, where=None):
    return 0.5 * jnp.mean(jnp.sum((z - y) ** 2, axis=(1, 2)), where=where)


HEADS = [
    pytest.param(ok.SoftmaxCrossEntropy(), cross_entropy, (LABELS,), id="ce"),
    pytest.param(ok.SoftmaxCrossEntropy(), cross_entropy, (LABELS, KEPT), id="ce_kept"),
    pytest.param(ok.SquaredError(), square, (VECTOR,), id="square"),
    pytest.param(ok.SquaredError(), square, (VECTOR, KEPT_EXAMPLES), id="square_kept"),
]
every = pytest.mark.parametrize(("head", "loss", "targets"), HEADS)


@every
def test_value_and_hessian_are_those_of_the_written_out_loss(head, loss, targets):
    # oracle: automatic differentiation
    want = loss(OUTPUTS, *targets)
    assert_allclose(head(OUTPUTS, *targets), want, rtol=1e-12)
    grad = jax.grad(loss)
    want = jax.jvp(lambda z: grad(z, *targets), (OUTPUTS,), (VECTOR,))[1]
    assert_allclose(head.hvp(OUTPUTS, VECTOR, *targets), want, rtol=1e-10, atol=1e-14)


@every
def test_samples_have_mean_zero_and_covariance_hessian(head, loss, targets):
    # oracle: closed form, within 4 standard errors
    n = 4000
    sample = jax.vmap(lambda k: head.sample(OUTPUTS, *targets, key=k))
    w = jax.jit(sample)(jr.split(jr.key(4), n)).reshape(n, -1)
    H = jax.jit(jax.hessian(loss))(OUTPUTS, *targets).reshape(24, 24)
    mean, products = w.mean(0), w[:, :, None] * w[:, None, :]
    assert jnp.all(jnp.abs(mean) <= 4.5 * w.std(0) / n**0.5 + 1e-12)
    error = products.std(0) / n**0.5
    assert jnp.all(jnp.abs(products.mean(0) - H) <= 4.5 * error + 1e-12)


def test_labels_left_out_may_be_out_of_range():
    # oracle: identity
    head, where = ok.SoftmaxCrossEntropy(), jnp.array([True, False])
    logits, labels = OUTPUTS[0], jnp.array([1, -100])
    want, got = head(logits[:1], labels[:1]), head(logits, labels, where)
    assert_allclose(got, want, rtol=1e-12)
    assert jnp.all(jnp.isfinite(jax.grad(head)(logits, labels, where)))


@pytest.mark.parametrize("head", [ok.SquaredError(), ok.SoftmaxCrossEntropy()])
def test_what_is_left_out_may_be_nan(head):
    # oracle: identity
    where = jnp.array([True, False])
    logits = OUTPUTS[0].at[1].set(jnp.nan)
    if isinstance(head, ok.SquaredError):
        targets = jnp.zeros_like(logits).at[1].set(jnp.nan)
    else:
        targets = jnp.array([1, -100])
    want = head(logits[:1], targets[:1]), jax.grad(head)(logits[:1], targets[:1])
    got = head(logits, targets, where), jax.grad(head)(logits, targets, where)
    assert_allclose(got[0], want[0], rtol=1e-12)
    assert_allclose(got[1], jnp.concatenate([want[1], jnp.zeros_like(want[1])]))
    product = head.hvp(logits, jnp.ones_like(logits), targets, where)
    sample = head.sample(logits, targets, where, key=jr.key(0))
    assert jnp.all(jnp.isfinite(jnp.stack([product, sample])))


@pytest.mark.parametrize(
    "where", [jnp.ones(1, bool), jnp.ones((2, 3), bool), jnp.ones(2)]
)
def test_a_mask_of_another_shape_or_dtype_is_refused(where):
    # oracle: none, the message
    head, logits = ok.SoftmaxCrossEntropy(), OUTPUTS[0]
    with pytest.raises(ValueError, match=r"where` of booleans of shape \(2,\)"):
        head(logits, jnp.array([1, 0]), where)


@pytest.mark.parametrize(
    ("head", "targets"),
    [(ok.SquaredError(), LABELS), (ok.SoftmaxCrossEntropy(), LABELS[:, :1])],
)
def test_targets_are_not_broadcast(head, targets):
    # oracle: none, the message
    with pytest.raises(ValueError, match="not broadcast"):
        head(OUTPUTS, targets)


@pytest.mark.parametrize("label", [-1, -3, 3, 100])
def test_a_label_that_is_no_class_makes_loss_and_gradient_nan(label):
    """Oracle: identity. Counted from the end, -1 would be the last class."""
    head, labels = ok.SoftmaxCrossEntropy(), jnp.array([0, label])
    z = jnp.zeros((2, 3))
    value, grad = jax.value_and_grad(head)(z, labels)
    assert jnp.isnan(value)
    assert jnp.all(jnp.isnan(grad[1]))
    left_out = jnp.array([True, False])
    assert_allclose(head(z, labels, left_out), jnp.log(3.0), rtol=1e-6)
