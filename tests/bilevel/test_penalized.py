"""What holds for every solver with two lower iterates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from precision import assert_allclose

import optkit as ok


def upper(x, y, batch):
    """Depends on a part of both trees, and on the batch."""
    gain = (1 + batch.astype(y["w"].dtype)).mean()
    return gain * jnp.sum((y["w"] - 1) ** 2) / 2 + jnp.sum(x["a"] ** 2) / 20


def lower(x, y, batch):
    gain = (1 + batch.astype(y["w"].dtype)).mean()
    pull = jnp.sum((y["w"] - x["a"]) ** 2) + jnp.sum((y["b"] - x["c"]) ** 2)
    return gain * pull / 2


def trees(dtype=float, *, shape=()):
    """An upper and a lower variable, each with a leaf that is None."""
    x = {"a": jnp.zeros((*shape, 3), dtype), "c": jnp.ones(shape, dtype), "n": None}
    y = {"w": jnp.zeros((*shape, 3), dtype), "b": jnp.zeros(shape, dtype), "n": None}
    return x, y


def f2sa(upper=upper, lower=lower, **options):
    options = {"penalty": 5.0, "inner_steps": 2} | options
    return ok.bilevel.f2sa(upper, lower, **transforms(options))


def f3sa(upper=upper, lower=lower, **options):
    return ok.bilevel.f3sa(
        upper, lower, **transforms({"penalty": 5.0, "decay": 0.5} | options)
    )


def penalty(upper=upper, lower=lower, **options):
    options = {"sigma": 0.2, "inner_steps": 2, "prox_step": 1.0} | options
    return ok.bilevel.penalty(upper, lower, **transforms(options))


def penalty_momentum(upper=upper, lower=lower, **options):
    options = {"sigma": 0.2, "decay": 0.5, "averaging": 0.9} | options
    return ok.bilevel.penalty_momentum(upper, lower, **transforms(options))


def transforms(options):
    return {"outer": optax.sgd(0.1, 0.5), "inner": optax.sgd(0.3)} | options


SOLVERS = pytest.mark.parametrize("make", [f2sa, f3sa, penalty, penalty_momentum])


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, tree, other)


@SOLVERS
def test_vmapped_seeds_equal_single_runs_and_compile_once(make, rng):
    # Oracle: identity with a loop in Python; the count of traces.
    traces = []

    def counted(x, y, batch):
        traces.append(1)
        return upper(x, y, batch)

    solver = make(counted)
    batches = jnp.asarray(rng.uniform(size=(4, 2, 3)))
    states = jax.vmap(solver.init)(*trees(shape=(2,)))
    many, info = jax.jit(lambda s: jax.lax.scan(jax.vmap(solver.step), s, batches))(
        states
    )
    state = solver.init(*trees())
    state, _ = solver.step(state, batches[0, 1])
    del traces[:]
    for batch in batches[1:]:
        state, last = solver.step(state, batch[1])
    assert not traces
    jax.tree.map(
        lambda a, b: assert_allclose(a[1], b, rtol=1e-12, atol=1e-15),
        (many.x, many.y),
        (state.x, state.y),
    )
    assert_allclose(info.lower[-1, 1], last.lower, rtol=1e-12)
    assert last.result == ok.RESULTS.successful


@SOLVERS
def test_nan_batch_moves_nothing_and_is_reported(make):
    # Oracle: identity, except for the count.
    solver = make()
    state, _ = solver.step(solver.init(*trees()), jnp.ones(2))
    after, info = solver.step(state, jnp.array([1.0, jnp.nan]))
    assert info.result == ok.RESULTS.nonfinite_gradient
    assert after.count == state.count + 1
    assert_same(after._replace(count=state.count), state)
    _, info = solver.step(after, jnp.ones(2))
    assert info.result == ok.RESULTS.successful


@SOLVERS
def test_a_batch_that_overflows_a_second_moment_changes_nothing(make):
    """Oracle: identity, except for the count; 1e20 squared overflows float32."""
    solver = make(inner=optax.rmsprop(0.1), outer=optax.rmsprop(0.1))
    state = solver.init(*trees(jnp.float32))
    for _ in range(7):
        state, _ = solver.step(state, jnp.ones(2, jnp.float32))
    after, info = solver.step(state, jnp.full(2, 1e20, jnp.float32))
    assert info.result == ok.RESULTS.nonfinite_gradient
    assert_same(after._replace(count=state.count), state)


@pytest.mark.parametrize("make", [f2sa, penalty_momentum])
def test_narrow_params_stay_narrow_and_follow_the_wide_run(make):
    # Oracle: the run in float64, to the rounding of bfloat16.
    dtype = jnp.bfloat16
    solver = make()
    narrow, wide = solver.init(*trees(dtype)), solver.init(*trees())
    for _ in range(5):
        narrow, info = solver.step(narrow, jnp.ones(2, dtype))
        wide, wide_info = solver.step(wide, jnp.ones(2))
    assert {leaf.dtype for leaf in jax.tree.leaves((narrow.x, narrow.y))} == {
        jnp.dtype(dtype)
    }
    assert info.hypergradient_norm.dtype == jnp.float32
    eps = float(jnp.finfo(dtype).eps)
    for got, want in ((narrow.x["a"], wide.x["a"]), (narrow.y["w"], wide.y["w"])):
        assert_allclose(got.astype(float), want, atol=4 * eps)
    assert_allclose(
        info.hypergradient_norm, wide_info.hypergradient_norm, rtol=40 * eps
    )


@SOLVERS
def test_objectives_that_are_not_scalar_are_refused(make):
    # Oracle: the message.
    solver = make(lambda x, y, batch: (y["w"] - 1) ** 2)
    state = solver.init(*trees())
    with pytest.raises(ValueError, match=r"upper to return one real scalar.*\(3,\)"):
        solver.step(state, jnp.ones(2))
    solver = make(lower=lambda x, y, batch: (y["w"].sum(), 1.0))
    with pytest.raises(ValueError, match="lower to return one real scalar, got tuple"):
        solver.step(state, jnp.ones(2))


def test_without_proximal_term_the_penalty_methods_are_those_of_f2sa_and_f3sa(rng):
    """Oracle: identity to the last bit, as σ is a power of two."""
    sigma = 2.0**-4
    pairs = (
        (f2sa(penalty=1 / sigma), penalty(sigma=sigma, prox_step=None)),
        (f3sa(penalty=1 / sigma), penalty_momentum(sigma=sigma, averaging=1.0)),
    )
    batches = jnp.asarray(rng.uniform(size=(20, 3)))
    for solvers in pairs:
        one, other = (
            jax.lax.scan(solver.step, solver.init(*trees()), batches)
            for solver in solvers
        )
        assert_same(one, other)
        assert one[0].centers is None
        assert (one[1].penalty == 16).all()
        assert jnp.linalg.norm(one[0].x["a"]) > 0.1


def test_centers_follow_the_iterates_by_averaging():
    """Oracle: the recursion z <- (1 - β) z + β w, by hand."""
    solver = penalty(averaging=0.25)
    state = solver.init(*trees())
    centers = np.zeros((2, 3))
    for _ in range(3):
        state, _ = solver.step(state, jnp.ones(2))
        iterates = np.stack([state.y["w"], state.z["w"]])
        centers = 0.75 * centers + 0.25 * iterates
        got = np.stack([center["w"] for center in state.centers])
        assert_allclose(got, centers, rtol=1e-12)


@SOLVERS
def test_integers_and_wrong_projections_are_refused(make):
    # Oracle: the message.
    with pytest.raises(TypeError, match="real floating leaves, got int"):
        make().init({"a": jnp.arange(3)}, jnp.ones(2))
    solver = make(project_y=lambda y: y["w"])
    with pytest.raises(ValueError, match=r"project_y\(y\) in the structure of y"):
        solver.step(solver.init(*trees()), jnp.ones(2))


def test_lower_iterates_that_agree_to_rounding_are_reported():
    # Oracle: identity. In float32, y = z at a penalty of 1e9 but not at 1e2.
    def result(value):
        solver = f2sa(penalty=value, inner_steps=60)
        x, y = trees(jnp.float32)
        state = solver.init(jax.tree.map(lambda a: a + 0.5, x), y)
        return solver.step(state, jnp.ones(2, jnp.float32))[1].result

    assert result(1e9) == ok.RESULTS.cancellation
    assert result(1e2) == ok.RESULTS.successful


def test_state_can_be_donated():
    # Oracle: identity; y and z start in separate buffers.
    solver = f2sa()
    step = jax.jit(solver.step, donate_argnums=0)
    x, y = trees()
    state = step(step(solver.init(x, y), jnp.ones(2))[0], jnp.ones(2))[0]
    assert state.count == 2
    assert x["a"].sum() == y["w"].sum() == 0
