"""Influence functions against retraining."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import assert_allclose
from scipy.stats import spearmanr

import optkit as ok

NUM_TRAIN, NUM_TEST, RIDGE = 40, 6, 0.05


def example_loss(params, example):
    """Logistic regression; the ridge makes the minimiser unique."""
    x, y = example
    margin = y * (x @ params["w"] + params["b"])
    return jnp.logaddexp(0.0, -margin) + RIDGE / 2 * sum(
        jnp.sum(p**2) for p in jax.tree.leaves(params)
    )


def mean_loss(params, weights, train):
    return weights @ jax.vmap(example_loss, (None, 0))(params, train)


@jax.jit
def fit(weights, train):
    """The minimiser by Newton's method, to a gradient of 1e-11."""

    def newton(_, params):
        C = ok.hessian(mean_loss, params, weights, train)
        grads = jax.grad(mean_loss)(params, weights, train)
        tagged = lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)
        step = ok.invert(tagged, lx.Cholesky()).mv(grads)
        return jax.tree.map(jnp.subtract, params, step)

    # No further: XLA may compute a gradient of nothing but rounding twice, differently,
    # and no step solves for both.
    start = {"w": jnp.zeros(3), "b": jnp.zeros(())}
    return jax.lax.fori_loop(0, 5, newton, start)


@pytest.fixture
def problem(key):
    """Train and test examples with noisy labels, and the fitted params."""
    x_key, y_key = jr.split(key)
    x = jr.normal(x_key, (NUM_TRAIN + NUM_TEST, 3))
    noise = jr.normal(y_key, (NUM_TRAIN + NUM_TEST,))
    y = jnp.sign(x @ jnp.array([1.0, -2.0, 0.5]) + 0.7 * noise)
    train = (x[:NUM_TRAIN], y[:NUM_TRAIN])
    test = (x[NUM_TRAIN:], y[NUM_TRAIN:])
    weights = jnp.full(NUM_TRAIN, 1 / NUM_TRAIN)
    return train, test, fit(weights, train)


@pytest.fixture
def inverse(problem):
    train, _, params = problem
    C = ok.hessian(mean_loss, params, jnp.full(NUM_TRAIN, 1 / NUM_TRAIN), train)
    return ok.invert(C, ok.CG(rtol=1e-12))


def test_scores_are_products_of_gradients_with_the_dense_inverse(problem, inverse):
    """Oracle: dense."""
    train, test, params = problem
    gradient = jax.jit(jax.vmap(jax.grad(example_loss), (None, 0)))
    rows = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(one)])
        for examples in (test, train)
        for one in [
            jax.tree.map(lambda g, i=i: g[i], gradient(params, examples))
            for i in range(len(examples[1]))
        ]
    ]
    rows = np.stack(rows)
    expected = rows[:NUM_TEST] @ inverse.as_matrix() @ rows[NUM_TEST:].T
    found = ok.influence(example_loss, params, train, test, inverse)
    assert found.shape == (NUM_TEST, NUM_TRAIN)
    assert_allclose(found, expected, rtol=1e-8)


def test_scores_rank_as_leave_one_out_retraining_does(problem, inverse):
    """Oracle: retraining without each example in turn."""
    train, test, params = problem
    losses = jax.vmap(example_loss, (None, 0))
    without = (1 - jnp.eye(NUM_TRAIN)) / (NUM_TRAIN - 1)
    refits = jax.vmap(fit, (0, None))(without, train)
    actual = jax.vmap(losses, (0, None))(refits, test).T - losses(params, test)[:, None]
    predicted = ok.influence(example_loss, params, train, test, inverse) / NUM_TRAIN
    correlations = [
        spearmanr(*rows).statistic for rows in zip(predicted, actual, strict=True)
    ]
    assert min(correlations) > 0.95
    assert_allclose(
        np.polyfit(np.ravel(predicted), np.ravel(actual), 1)[0], 1, atol=0.2
    )


def without_penalty(w, example):
    x, y = example
    return 0.5 * (x @ w - y) ** 2


def ridge_loss(w, example):
    return without_penalty(w, example) + 0.5 * w @ w


@pytest.mark.parametrize("seed", range(4))
def test_of_a_regularised_model_the_test_loss_has_no_penalty(seed):
    """Oracle: retraining without each example in turn, in NumPy; ridge with λ = 1.

    The slope is near 1 / (1 - leverage), which first order leaves out.
    """
    rng = np.random.default_rng(seed)
    x, truth = rng.normal(size=(NUM_TRAIN + NUM_TEST, 5)), rng.normal(size=5)
    y = x @ truth + 0.5 * rng.normal(size=len(x))
    (X, test_x), (Y, test_y) = np.split(x, [NUM_TRAIN]), np.split(y, [NUM_TRAIN])

    def test_losses(X, Y):
        w = np.linalg.solve(X.T @ X / len(X) + np.eye(5), X.T @ Y / len(X))
        return w, 0.5 * (test_x @ w - test_y) ** 2

    w, losses = test_losses(X, Y)
    refits = [np.delete(X, j, 0) for j in range(NUM_TRAIN)]
    refits = [test_losses(x, np.delete(Y, j))[1] for j, x in enumerate(refits)]
    actual = np.ravel(np.stack(refits, 1) - losses[:, None])

    C = ok.LowRank(jnp.asarray(X / np.sqrt(NUM_TRAIN)))
    P = ok.invert(C, ok.Woodbury(), damping=1.0)
    data = jax.tree.map(jnp.asarray, ((X, Y), (test_x, test_y)))
    scores = [
        np.ravel(ok.influence(ridge_loss, jnp.asarray(w), *data, P, test_loss=loss))
        for loss in (None, without_penalty)
    ]
    with_penalty, right = (np.corrcoef(s, actual)[0, 1] for s in scores)
    assert right > 0.99
    assert with_penalty < 0.98
    assert_allclose(np.polyfit(scores[1] / NUM_TRAIN, actual, 1)[0], 1.15, atol=0.05)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_the_score_of_an_example_with_itself_is_on_the_diagonal(
    problem, inverse, chunk
):
    """Oracle: the matrix of all pairs; 7 does not divide 40."""
    train, _, params = problem
    pairs = ok.influence(example_loss, params, train, train, inverse)
    own = jax.jit(
        lambda P: ok.self_influence(example_loss, params, train, P, chunk=chunk)
    )(inverse)
    assert own.shape == (NUM_TRAIN,)
    assert_allclose(own, np.diagonal(pairs), rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_change_nothing_and_it_jits(problem, inverse, chunk):
    """Oracle: the default chunk; 7 does not divide 40."""
    train, test, params = problem
    expected = ok.influence(example_loss, params, train, test, inverse)
    found = jax.jit(
        lambda P: ok.influence(example_loss, params, train, test, P, chunk=chunk)
    )(inverse)
    assert_allclose(found, expected, rtol=1e-9)


def test_memory_is_bounded_by_the_chunk():
    """Oracle: XLA's own account; n gradients at once would be over 16 MB."""
    params, n, chunk = jnp.zeros(1000, jnp.float32), 4096, 128
    examples = (jnp.ones((n, 1000), jnp.float32), jnp.ones(n, jnp.float32))
    loss = lambda w, e: (e[0] @ w - e[1]) ** 2  # noqa: E731
    identity = lx.IdentityLinearOperator(jax.ShapeDtypeStruct((1000,), jnp.float32))
    few = jax.tree.map(lambda a: a[:300], examples)
    for num_gradients, use in (
        (1.5, lambda e: ok.influence(loss, params, e, few, identity, chunk=chunk)),
        (2.5, lambda e: ok.self_influence(loss, params, e, identity, chunk=chunk)),
    ):
        memory = jax.jit(use).lower(examples).compile().memory_analysis()
        bound = 2 * memory.output_size_in_bytes + num_gradients * 4 * 1000 * chunk
        assert memory.temp_size_in_bytes < bound


BAD = {
    "empty": (lambda t: (t[0][:0], t[1][:0]), {}, "at least one .* leaves of train"),
    "lengths": (
        lambda t: (t[0], t[1][:3]),
        {},
        r"first axis of all leaves of train, got shapes \[\(40, 3\), \(3,\)\]",
    ),
    "chunk": (lambda t: t, {"chunk": 0}, "chunk >= 1, got 0"),
}


@pytest.mark.parametrize(("change", "options", "match"), BAD.values(), ids=BAD.keys())
def test_bad_examples_are_refused(problem, inverse, change, options, match):
    """Oracle: the message."""
    train, test, params = problem
    with pytest.raises(ValueError, match=r"`ok.influence`.*" + match):
        ok.influence(example_loss, params, change(train), test, inverse, **options)


def test_an_inverse_on_other_params_is_refused(problem, inverse):
    """Oracle: the message."""
    train, test, params = problem
    with pytest.raises(ValueError, match=r"`ok.influence` needs params in"):
        ok.influence(example_loss, params["w"], train, test, inverse)


def test_a_loss_that_is_not_a_scalar_is_refused(problem, inverse):
    """Oracle: the message."""
    train, test, params = problem
    with pytest.raises(ValueError, match=r"`ok.influence`.*one real scalar"):
        ok.influence(lambda p, e: e[0] * p["b"], params, train, test, inverse)
