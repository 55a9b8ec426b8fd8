import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

from optkit.demo import training
from optkit.demo.data import Batch, digits
from optkit.demo.models import init_mlp, loss
from optkit.demo.training import mean_and_std, train


@pytest.fixture(scope="module")
def data():
    return digits()


@pytest.fixture
def _promotion_of_optax():
    """Optax's line searches mix dtypes; strict promotion is for our code."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_curves_have_a_point_at_both_ends_and_the_loss_falls(key, data):
    # Oracle: closed form at step 0, where the loss is near log 10.
    seen = []
    run = train(
        optax.sgd(0.2),
        data,
        key=key,
        steps=101,
        num_seeds=2,
        report=lambda *point: seen.append(point),
    )
    assert (run.steps[0], run.steps[-1], len(run.steps)) == (0, 101, 51)
    assert run.train_loss.shape == run.test_accuracy.shape == (51, 2)
    assert run.train_loss.dtype == np.float32
    assert abs(run.train_loss[0].mean() - np.log(10)) < 0.5
    assert (run.train_loss[-1] < 0.9).all()
    assert (run.test_accuracy[-1] > 0.75).all()
    assert 0 < run.step_seconds < run.total_seconds
    assert [step for step, *_ in seen] == run.steps.tolist()
    np.testing.assert_allclose([x for _, x, _ in seen], run.train_loss.mean(axis=-1))


def test_training_equals_a_plain_loop(key, data, monkeypatch):
    # Oracle: a Python loop over the steps of one seed, without vmap or jit.
    tx, seed = optax.sgd(0.1, momentum=0.9), jr.split(key, 2)[1]
    params = init_mlp(key=seed)
    state = tx.init(params)
    for i in range(3):
        rows = jr.randint(jr.fold_in(seed, i), (8,), 0, 4000, jnp.int32)
        batch = Batch(data.train.images[rows], data.train.labels[rows])
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    monkeypatch.setattr(training, "NUM_POINTS", 2)  # chunks of unlike lengths
    run = train(tx, data, key=key, steps=3, num_seeds=2, batch_size=8)
    assert run.steps.tolist() == [0, 2, 3]
    for got, want in zip(*map(jax.tree.leaves, (run.params, params)), strict=True):
        np.testing.assert_allclose(got[1], want, rtol=1e-3, atol=1e-5)


def test_same_key_same_run_and_other_key_other_run(key, data):
    # Oracle: identity, bit for bit.
    first, again, other = (
        train(optax.sgd(0.1), data, key=k, steps=1, num_seeds=2).train_loss
        for k in (key, key, jr.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    assert (first[:, 0] != first[:, 1]).all()


def test_one_compilation_serves_chunks_of_all_lengths(key, data, monkeypatch):
    # Oracle: count of traces; the step is traced once.
    traces = []

    def update(updates, state, params=None, **extra):
        traces.append(1)
        return jax.tree.map(lambda g: -0.1 * g, updates), state

    tx = optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )
    monkeypatch.setattr(training, "NUM_POINTS", 4)
    run = train(tx, data, key=key, steps=7, num_seeds=2)
    assert set(np.diff(run.steps)) == {1, 2}
    assert len(traces) == 1


@pytest.mark.usefixtures("_promotion_of_optax")
def test_optimizer_that_asks_for_the_objective_gets_it(key, data):
    # Oracle: identity, a line search on large batches descends.
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=8)
    tx = optax.chain(optax.sgd(1.0), search)
    run = train(tx, data, key=key, steps=10, num_seeds=2, batch_size=512)
    assert (run.train_loss[-1] < run.train_loss[0]).all()


def test_mean_and_std_are_over_the_seeds(rng):
    # Oracle: closed form, Bessel's correction; one seed has no spread.
    mean, std = mean_and_std(np.array([[1.0, 3.0], [2.0, 2.0]]))
    np.testing.assert_allclose(mean, [2.0, 2.0])
    np.testing.assert_allclose(std, [2**0.5, 0.0])
    np.testing.assert_array_equal(mean_and_std(np.ones((4, 1)))[1], np.zeros(4))
