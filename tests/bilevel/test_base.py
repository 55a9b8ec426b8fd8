import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from precision import assert_allclose

import optkit as ok
from optkit.bilevel._base import InnerBatches

X = {"decay": jnp.array([0.5, -0.5]), "none": None, "bias": jnp.array(0.2)}
Y = {"w": jnp.array([0.1, 0.2, 0.3])}


def lower(x, y, batch):
    fit = 0.5 * jnp.mean((batch @ y["w"] - x["bias"]) ** 2)
    return fit + 0.5 * jnp.sum(jnp.exp(x["decay"])) * jnp.sum(y["w"] ** 2)


def upper(x, y, batch):
    return 0.5 * jnp.mean((batch @ y["w"] - 1) ** 2) + 0.5 * x["bias"] ** 2


def term(batch, index=0):
    both = ok.bilevel.Term(jnp.array(index), batch)
    return ok.bilevel.Batches(upper_x=both, lower_x=both)


def soba(upper=upper, lower=lower, **kwargs):
    kwargs = {"outer": optax.sgd(0.1), "inner": optax.sgd(0.1)} | kwargs
    return ok.bilevel.soba(upper, lower, **kwargs)


def saba(upper=upper, lower=lower, **kwargs):
    kwargs = {"outer": optax.sgd(0.1), "inner": optax.sgd(0.1)} | kwargs
    return ok.bilevel.saba(upper, lower, num_upper=2, num_lower=2, **kwargs)


def aid(upper=upper, lower=lower, **kwargs):
    kwargs = {"outer": optax.sgd(0.1), "inner": optax.sgd(0.1)} | kwargs
    method = ok.bilevel.Implicit(ok.Neumann(2, 0.1), warm_start=True)
    return ok.bilevel.hypergradient_descent(upper, lower, method=method, **kwargs)


def itd(upper=upper, lower=lower, project_y=None, inner=None, **kwargs):
    inner = optax.sgd(0.1) if inner is None else inner
    method = ok.bilevel.Unrolled(3, inner, project_y=project_y)
    kwargs = {"outer": optax.sgd(0.1)} | kwargs
    return ok.bilevel.hypergradient_descent(upper, lower, method=method, **kwargs)


SOLVERS = {"soba": soba, "saba": saba, "implicit": aid, "unrolled": itd}
BATCH = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))


@pytest.fixture(params=SOLVERS)
def make(request):
    return SOLVERS[request.param]


def given(make, batch=BATCH):
    return term(batch) if make is saba else batch


def test_a_step_compiles_once_scans_and_vmaps(make):
    """Oracle: a counter in the objective, and single steps."""
    traces = []

    def counted(x, y, batch):
        traces.append(1)
        return lower(x, y, batch)

    solver = make(lower=counted)
    batch = given(make)
    state = solver.init(X, Y)
    state, _ = solver.step(state, batch)
    count = len(traces)
    for _ in range(2):
        state, _ = solver.step(state, batch)
    assert len(traces) == count

    @jax.jit
    def seeds(x):
        many = jax.vmap(
            solver.init, in_axes=({"decay": 0, "none": None, "bias": 0}, None)
        )
        return jax.lax.scan(
            lambda s, _: jax.vmap(solver.step, in_axes=(0, None))(s, batch),
            many(x, Y),
            None,
            3,
        )

    end, info = seeds(jax.tree.map(lambda a: jnp.stack([a, a + 0.1]), X))
    assert_allclose(end.y["w"][0], state.y["w"], rtol=1e-12)
    assert_allclose(end.x["decay"][0], state.x["decay"], rtol=1e-12)
    assert not np.allclose(end.x["decay"][0], end.x["decay"][1])
    assert info.value.shape == (3, 2)


def test_a_batch_of_nan_changes_nothing_and_the_next_one_goes_on(make):
    """Oracle: the state before, and the step without the NaN batch."""
    solver = make()
    start, _ = solver.step(solver.init(X, Y), given(make))
    kept, info = solver.step(start, given(make, BATCH * jnp.nan))
    assert info.result == ok.RESULTS.nonfinite_gradient
    assert "Check the batch" in ok.RESULTS[info.result]
    assert kept.count == start.count + 1
    same = kept._replace(count=start.count)
    jax.tree.map(np.testing.assert_array_equal, same, start)
    after, info = solver.step(kept, given(make))
    expected, _ = solver.step(start, given(make))
    assert info.result == ok.RESULTS.successful
    jax.tree.map(np.testing.assert_array_equal, after.x, expected.x)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variables_keep_their_dtype_and_sums_are_wide(make, dtype):
    """Oracle: the same step in float64, within rounding."""
    solver = make()

    def cast(tree):
        return jax.tree.map(lambda a: a.astype(dtype), tree)

    state = solver.init(cast(X), cast(Y))
    state, info = solver.step(state, given(make, BATCH.astype(dtype)))
    wide, _ = solver.step(solver.init(X, Y), given(make))
    assert all(a.dtype == dtype for a in jax.tree.leaves((state.x, state.y)))
    assert info.hypergradient_norm.dtype == jnp.float32
    narrow = state.x["decay"].astype(float)
    assert_allclose(narrow, wide.x["decay"], rtol=4 * float(jnp.finfo(dtype).eps))


def test_shards_stay_where_they_are(make):
    """Oracle: the sharding of the variables, and the step on one device."""
    mesh = jax.make_mesh((2,), ("d",))
    shard = NamedSharding(mesh, PartitionSpec("d"))
    y = {"w": jnp.arange(4.0) / 10}
    batch = given(make, jnp.concatenate([BATCH, BATCH[:, :1]], axis=1))
    solver = make()
    one, _ = solver.step(solver.init(X, y), batch)
    state = solver.init(X, jax.device_put(y, {"w": shard}))
    state, _ = solver.step(state, batch)
    assert state.y["w"].sharding.is_equivalent_to(shard, 1)
    assert_allclose(state.y["w"], one.y["w"], rtol=1e-12)
    assert_allclose(state.x["decay"], one.x["decay"], rtol=1e-12)


def test_structures_that_change_raise_before_anything_runs(make):
    solver = make(project_x=lambda x: {"decay": x["decay"]})
    with pytest.raises(ValueError, match=r"project_x\(x\) in the structure of x"):
        solver.step(solver.init(X, Y), given(make))
    solver = make(project_x=lambda x: jax.tree.map(lambda a: a.astype(jnp.bfloat16), x))
    with pytest.raises(TypeError, match=r"dtype of x, got bfloat16 at .*\['bias'\]"):
        solver.step(solver.init(X, Y), given(make))
    growing = optax.GradientTransformation(
        lambda params: jnp.zeros(1), lambda g, s, p=None: (g, jnp.append(s, 0.0))
    )
    solver = make(inner=growing)
    with pytest.raises(ValueError, match=r"state that the transform of y.*\(2,\)"):
        solver.step(solver.init(X, Y), given(make))


@pytest.mark.parametrize("name", ["upper", "lower"])
def test_objectives_that_are_not_scalar_raise(make, name):
    solver = make(**{name: lambda x, y, batch: y["w"]})
    with pytest.raises(ValueError, match=f"needs {name} to return one real scalar"):
        solver.step(solver.init(X, Y), given(make))


def test_variables_that_are_not_floating_raise(make):
    with pytest.raises(TypeError, match=r"got int\d+ at x\['n'\]\. Pass"):
        make().init({"n": 3}, Y)
    with pytest.raises(TypeError, match=r"got complex\d+ at y\. Pass"):
        make().init(X, jnp.array([1j]))


def test_python_numbers_become_arrays_of_strong_dtype(make):
    """Oracle: a weak dtype would make the second step compile again."""
    state = make().init({"decay": X["decay"], "none": None, "bias": 0.2}, Y)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))


def test_a_loop_takes_a_batch_for_each_step():
    """Oracle: a sum, in one loop, in two parts, and in groups."""
    body = lambda carry, batch: carry + batch["b"]  # noqa: E731
    each = InnerBatches({"b": jnp.arange(4.0)}, is_shared=False)
    shared = InnerBatches({"b": 2.0}, is_shared=True)
    assert each.loop(body, 0.0, 4) == 6.0
    assert shared.loop(body, 0.0, 4) == 8.0
    first, rest = each.split(1)
    assert rest.loop(body, first.loop(body, 10.0, 1), 3) == 16.0
    pairs = each.grouped(2).loop(lambda c, b: c * 10 + b["b"].sum(), 0.0, 2)
    assert pairs == 15.0
    assert (each.last()["b"], shared.last()["b"]) == (3.0, 2.0)
    with pytest.raises(ValueError, match=r"leading axis of 3.*\[\(4,\)\]"):
        each.loop(body, 0.0, 3)
