import jax
import jax.numpy as jnp
import numpy as np

from optkit.demo.data import Batch
from optkit.demo.models import accuracy, init_mlp, logits, loss


def _problem(key, rng):
    batch = Batch(
        jnp.asarray(rng.uniform(size=(6, 784)), jnp.float32),
        jnp.asarray(rng.integers(0, 10, 6), jnp.int32),
    )
    return init_mlp(key=key), batch


def test_network_equals_its_transcription(key, rng):
    # Oracle: NumPy transcription in float64.
    params, batch = _problem(key, rng)
    (w1, b1), (w2, b2) = [map(np.float64, layer) for layer in params]
    z = np.tanh(np.float64(batch.images) @ w1 + b1) @ w2 + b2
    np.testing.assert_allclose(logits(params, batch.images), z, rtol=1e-4, atol=1e-5)
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    expected = -log_p[np.arange(6), batch.labels].mean()
    np.testing.assert_allclose(loss(params, batch), expected, rtol=1e-5)
    hits = (z.argmax(axis=-1) == np.asarray(batch.labels)).mean()
    np.testing.assert_allclose(accuracy(params, batch), hits, rtol=1e-6)


def test_weights_and_loss_are_float32_with_x64_on(key, rng):
    # Oracle: identity of dtypes.
    params, batch = _problem(key, rng)
    grads = jax.grad(loss)(params, batch)
    for leaf in (*jax.tree.leaves((params, grads)), loss(params, batch)):
        assert leaf.dtype == jnp.float32


def test_initial_weights_have_variance_one_over_inputs(key):
    # Oracle: closed form; standard error of a variance of n normals is sqrt(2 / n).
    first, _ = init_mlp(key=key)
    n = first.weight.size
    np.testing.assert_allclose(784 * first.weight.var(), 1.0, atol=4 * (2 / n) ** 0.5)
    assert not first.bias.any()
