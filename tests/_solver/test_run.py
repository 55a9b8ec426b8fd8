import io

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from precision import assert_allclose
from problems import q2_lower, q2_upper

import optkit as ok


def noisy_upper(x, y, batch):
    return q2_upper(x, y) + batch @ y


SOLVER = ok.bilevel.soba(
    noisy_upper, q2_lower, outer=optax.sgd(0.1, 0.9), inner=optax.sgd(0.2)
)


def start():
    return SOLVER.init(jnp.zeros(2), jnp.zeros(2))


def batches(k):
    return jr.normal(jr.fold_in(jr.key(0), k), (2,))


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_saved_state_continues_bit_for_bit():
    """Oracle: the uninterrupted run; saved leaf by leaf, cut within a chunk."""
    whole, history = ok.run(SOLVER, start(), batches, 53, every=20)
    first, early = ok.run(SOLVER, start(), batches, 31, every=20)
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(first))
    file.seek(0)
    saved = np.load(file)
    leaves = [jnp.asarray(saved[name]) for name in saved.files]
    loaded = jax.tree.structure(start()).unflatten(leaves)
    rest, late = ok.run(SOLVER, loaded, batches, 22, every=20)
    equal(rest, whole)
    joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), early, late)
    equal(joined, history)


def test_function_and_iterable_take_the_same_steps():
    """Oracle: single steps."""
    state, infos = start(), []
    for k in range(7):
        state, info = SOLVER.step(state, batches(k))
        infos.append(info)
    stream = (batches(k) for k in range(100))
    by_iterable = ok.run(SOLVER, start(), stream, 7, every=3)
    equal(by_iterable.state, state)
    by_function = ok.run(SOLVER, start(), batches, 7, every=3)
    jax.tree.map(
        lambda a, b: assert_allclose(a, b, rtol=1e-13),
        by_function.state,
        state,
    )
    for name in ("value", "hypergradient_norm", "linear_residual"):
        expected = [float(getattr(info, name)) for info in infos]
        got = getattr(by_iterable.history, name)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, expected)
        assert_allclose(getattr(by_function.history, name), expected, rtol=1e-12)
    next(stream)  # the run took no more than it needed
    short = ok.run(SOLVER, start(), [batches(0)] * 4, 10)
    assert short.history.value.shape == (4,)


def test_report_sees_every_chunk_and_the_end():
    """Oracle: the arithmetic of chunks, from the count of the state."""
    calls = []
    state, history = ok.run(
        SOLVER,
        start(),
        batches,
        25,
        every=10,
        report=lambda step, info: calls.append((step, float(info.value))),
    )
    assert [step for step, _ in calls] == [10, 20, 25]
    np.testing.assert_array_equal([u for _, u in calls], history.value[[9, 19, 24]])
    ok.run(SOLVER, state, batches, 5, report=lambda step, info: calls.append(step))
    assert calls[-1] == 30


def test_one_program_for_all_runs_of_a_solver():
    """Oracle: a counter in the objective."""
    traces = []

    def counted(x, y, batch):
        traces.append(1)
        return q2_lower(x, y)

    solver = ok.bilevel.soba(
        noisy_upper, counted, outer=optax.sgd(0.1), inner=optax.sgd(0.1)
    )
    state = solver.init(jnp.zeros(2), jnp.zeros(2))
    state, _ = ok.run(solver, state, batches, 12, every=5)
    count = len(traces)
    ok.run(solver, state, batches, 3, every=5)
    assert len(traces) == count


def test_a_bad_batch_is_in_the_history_and_the_run_continues():
    """Oracle: the run without that step."""

    def broken(k):
        return jnp.where(k == 4, jnp.nan, batches(k))

    state, history = ok.run(SOLVER, start(), broken, 8)
    bad = history.result != ok.RESULTS.successful
    np.testing.assert_array_equal(bad, np.arange(8) == 4)
    others = (batches(k) for k in range(8) if k != 4)
    expected, _ = ok.run(SOLVER, start(), others, 7)
    assert_allclose(state.x, expected.x, rtol=1e-13)
    assert state.count == 8


def test_seeds_run_side_by_side():
    """Oracle: one seed alone."""
    many = ok.Solver(jax.vmap(SOLVER.init), jax.vmap(SOLVER.step, in_axes=(0, None)))
    x = jnp.stack([jnp.zeros(2), jnp.ones(2)])
    states, history = ok.run(many, many.init(x, x), batches, 6)
    assert history.value.shape == (6, 2)
    one, _ = ok.run(SOLVER, SOLVER.init(x[1], x[1]), batches, 6)
    assert_allclose(states.x[1], one.x, rtol=1e-13)


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="num_steps >= 1"):
        ok.run(SOLVER, start(), batches, 0)
    with pytest.raises(ValueError, match="every >= 1"):
        ok.run(SOLVER, start(), batches, 1, every=0)
    with pytest.raises(ValueError, match="iterable without batches"):
        ok.run(SOLVER, start(), [], 3)
    with pytest.raises(TypeError):
        ok.run(SOLVER, start(), 3, 3)
    with pytest.raises(TypeError):
        ok.run(optax.sgd(0.1), start(), batches, 3)
    holding_arrays = eqx.Partial(lambda a, k: a, jnp.ones(2))
    with pytest.raises(TypeError, match="needs a hashable function"):
        ok.run(SOLVER, start(), holding_arrays, 3)
