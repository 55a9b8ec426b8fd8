import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from optkit.demo import cleaning
from optkit.demo.cleaners import CLEANERS
from optkit.demo.cleaning import clean, corrupted, judge, lower, upper
from optkit.demo.data import digits
from optkit.demo.models import Layer


@pytest.fixture(scope="module")
def task():
    """Two seeds of corrupted labels, and where they are right."""
    return corrupted(digits(), key=jr.key(0), num_seeds=2)


@pytest.fixture
def short(monkeypatch):
    """Classifiers that are hardly trained."""
    monkeypatch.setattr(cleaning, "REFIT_STEPS", 3)


def test_half_of_the_labels_are_drawn_anew_and_a_tenth_of_those_stay_right(task):
    # Oracle: the binomial standard error, 1500 draws with probability 0.9 to be wrong.
    drawn, is_right = task
    wrong = np.asarray(jnp.sum(~is_right, axis=1))
    np.testing.assert_allclose(wrong, 1350, atol=4 * np.sqrt(1500 * 0.9 * 0.1))
    true = digits().train.labels[:3000]
    np.testing.assert_array_equal(is_right, drawn.labels == true)
    assert not jnp.array_equal(*drawn.labels)  # the seeds differ
    assert drawn.validation.labels.shape == (1000,)


def test_objectives_are_the_weighted_and_the_validation_loss(task, rng):
    # Oracle: NumPy.
    drawn, _ = task
    one = drawn._replace(labels=drawn.labels[0])
    x = jnp.asarray(rng.normal(size=3000), jnp.float32)
    W, b = 0.1 * rng.normal(size=(784, 10)), rng.normal(size=10)
    y = Layer(jnp.asarray(W, jnp.float32), jnp.asarray(b, jnp.float32))

    def losses(images, labels):
        z = np.asarray(images, float) @ W + b
        return np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]

    weights = 1 / (1 + np.exp(-np.asarray(x, float)))
    expected = np.mean(weights * losses(one.images, one.labels))
    expected += cleaning.DECAY * np.sum(W**2)
    np.testing.assert_allclose(lower(x, y, one), expected, rtol=1e-5)
    validation = losses(*one.validation).mean()
    np.testing.assert_allclose(upper(x, y, one), validation, rtol=1e-5)


@pytest.mark.usefixtures("short", "standard_promotion")
def test_auc_is_that_of_scikit_learn_with_ties(task, rng):
    # Oracle: sklearn.
    drawn, is_right = task
    weights = jnp.asarray(rng.integers(0, 20, (2, 3000)) / 20, jnp.float32)
    found = judge(weights, drawn, is_right, digits().test, start=0.0)
    expected = [roc_auc_score(r, w) for r, w in zip(is_right, weights, strict=True)]
    np.testing.assert_allclose(found.auc, expected, rtol=1e-5)


@pytest.mark.usefixtures("short", "standard_promotion")
def test_first_order_cleaner_tells_right_from_wrong_within_a_few_steps(task):
    # Oracle: the truth. Weights of one say nothing (0.5); eight steps much.
    drawn, is_right = task
    seen = []
    found = clean(
        CLEANERS["f2sa"].solver,
        drawn,
        is_right,
        digits().test,
        steps=8,
        report=lambda step, loss, accuracy: seen.append((step, loss, accuracy)),
    )
    assert [step for step, *_ in seen] == list(range(1, 9))
    assert seen[-1][1] < seen[0][1]  # validation loss
    assert found.auc.min() > 0.85
    assert found.weights.shape == (2, 3000)
    assert found.steps == 8
