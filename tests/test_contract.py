"""The contract of every optimizer: a row per optimizer, a test per promise.

A new optimizer adds a `Row`; if a promise does not hold for it, that is a bug.
The oracle, unless a test says otherwise, is the same optimizer run plainly: eagerly,
step by step, on the leaf alone.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose, assert_array_equal
from precision import X64

import optkit as ok

NUM_STEPS = 6
RTOL, TIGHT = (1e-10, 1e-12) if X64 else (1e-5, 1e-6)


def no_extra(loss: Callable[[Any], Any], params: Any) -> dict[str, Any]:
    """The extra arguments of a transform that needs the gradient alone."""
    return {}


def given_diag(loss: Callable[[Any], Any], params: Any) -> dict[str, Any]:
    """A Hessian diagonal as data: that of `loss`, less its coupling term."""
    return {"hessian_diag": jax.tree.map(lambda p: 2 + 1.2 * p**2, params)}


def objective(loss: Callable[[Any], Any], params: Any) -> dict[str, Any]:
    """The function whose curvature the transform estimates itself."""
    return {"value_fn": loss}


@dataclass(frozen=True)
class Row:
    """One optimizer under contract."""

    make: Callable[..., optax.GradientTransformation]
    options: dict[str, Any] = field(default_factory=dict)
    extra: Callable[[Any, Any], dict[str, Any]] = no_extra  # of `update`, per step
    complex_leaves: bool = True  # supported; else refused with a TypeError in init
    moments: tuple[str, ...] = ()  # fields of the state that are float32 or wider
    elementwise: bool = True  # a leaf's update depends on that leaf alone
    outermost: bool = False  # refused inside a wrapper that hides leaves
    stacked: tuple[str, ...] = ()  # fields with an axis of their own before the leaf's
    replicated: tuple[str, ...] = ()  # fields that every device has the whole of
    float32: float = 1e-5  # what the order of a sum changes in that precision
    jitted: bool = False  # plain steps are compiled: eagerly `lax.cond` is, each time

    def __call__(self, **options: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.make(**(self.options | options)))


def sgd_prox(learning_rate: Any) -> optax.GradientTransformation:
    """Gradient steps that shrink: the smallest chain that ends in proximal decay."""
    decay = ok.optim.proximal_weight_decay(learning_rate, weight_decay=0.5)
    return optax.chain(optax.sgd(learning_rate), decay)


def hutchinson_adahessian(learning_rate: Any) -> optax.GradientTransformation:
    """AdaHessian that estimates its diagonal at each step."""
    return ok.optim.with_hutchinson(ok.optim.adahessian(learning_rate), key=jr.key(0))


def hutchinson_sophia(learning_rate: Any) -> optax.GradientTransformation:
    """Sophia that estimates its diagonal when it uses it, at every second step."""
    tx = ok.optim.sophia(learning_rate, gamma=1.0, update_interval=2)
    return ok.optim.with_hutchinson(tx, key=jr.key(0), update_interval=2)


def accumulated(learning_rate: Any) -> optax.GradientTransformation:
    """The wrapper itself; `tests/optim/test_accumulate.py` has longer windows."""
    return ok.optim.accumulate(ok.optim.adahessian(learning_rate), every=1)


def mfac(learning_rate: Any) -> optax.GradientTransformation:
    """M-FAC with a fixed window: `optax.inject_hyperparams` cannot inject it."""
    return ok.optim.mfac(learning_rate, 4, 0.5, momentum=0.5, weight_decay=0.1)


def split_sophia(learning_rate: Any) -> optax.GradientTransformation:
    """Sophia, made to take complex leaves."""
    tx = ok.optim.sophia(learning_rate, gamma=0.1, weight_decay=0.1)
    return ok.optim.split_real_and_imaginary(tx)


ROWS = {
    "scale_by_adan": Row(ok.optim.scale_by_adan, moments=("m", "v", "n")),
    "adan": Row(ok.optim.adan, {"learning_rate": 0.1}, moments=("m", "v", "n")),
    "adan_prox": Row(ok.optim.adan, {"learning_rate": 0.1, "weight_decay": 0.1}),
    "adan_decoupled": Row(
        ok.optim.adan, {"learning_rate": 0.1, "weight_decay": 0.1, "proximal": False}
    ),
    "proximal_weight_decay": Row(sgd_prox, {"learning_rate": 0.01}),
    "adahessian": Row(
        ok.optim.adahessian,
        {"learning_rate": 0.1, "weight_decay": 0.1},
        given_diag,
        complex_leaves=False,
        moments=("m", "v"),
    ),
    "sophia": Row(
        ok.optim.sophia,
        {"learning_rate": 0.1, "weight_decay": 0.1, "gamma": 0.1},
        given_diag,
        complex_leaves=False,
        moments=("m", "h"),
    ),
    "split_sophia": Row(
        split_sophia, {"learning_rate": 0.1}, given_diag, moments=("m", "h")
    ),
    "accumulate": Row(
        accumulated, {"learning_rate": 0.1}, given_diag, complex_leaves=False
    ),
    "hutchinson_adahessian": Row(
        hutchinson_adahessian,
        {"learning_rate": 0.1},
        objective,
        complex_leaves=False,
        elementwise=False,
        outermost=True,
        jitted=True,
    ),
    "hutchinson_sophia": Row(
        hutchinson_sophia,
        {"learning_rate": 0.1},
        objective,
        complex_leaves=False,
        elementwise=False,
        outermost=True,
        jitted=True,
    ),
    "scale_by_mfac": Row(
        ok.optim.scale_by_mfac,
        {"window": 4, "damping": 0.5},
        complex_leaves=False,
        elementwise=False,
        stacked=("window",),
        replicated=("gram",),
        float32=1e-4,  # through the small solve
    ),
    "mfac": Row(
        mfac,
        {"learning_rate": 0.1},
        complex_leaves=False,
        elementwise=False,
        stacked=("window",),
        replicated=("gram",),
    ),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
every_alias = pytest.mark.parametrize(
    "row",
    [row for row in ROWS.values() if "learning_rate" in row.options],
    ids=[name for name, row in ROWS.items() if "learning_rate" in row.options],
)
pytestmark = pytest.mark.usefixtures("standard_promotion")


# --- the problem, and three ways to take steps on it


def make_params(dtype: Any = float) -> dict[str, Any]:
    """Nested, with a scalar, an empty and a None leaf."""
    keys = jr.split(jr.key(1), 3)
    return {
        "w": jr.normal(keys[0], (3, 4), float).astype(dtype),
        "inner": [jr.normal(keys[1], (5,), float).astype(dtype), None],
        "scalar": jr.normal(keys[2], (), float).astype(dtype),
        "empty": jnp.zeros((0, 2), dtype),
    }


def loss(params: Any) -> jax.Array:
    """Smooth, not quadratic, with curvature in and across leaves."""
    squares = [jnp.sum(jnp.abs(p) ** 2).astype(float) for p in jax.tree.leaves(params)]
    quartics = [jnp.sum(jnp.abs(p) ** 4).astype(float) for p in jax.tree.leaves(params)]
    total, zero = sum(squares), jnp.zeros([])
    return zero + total + 0.1 * sum(quartics) + 0.05 * total**2


def one_step(row: Row, tx: Any, params: Any, state: Any, loss: Any = loss):
    """One update, applied."""
    grads = jax.grad(loss)(params)
    updates, state = tx.update(grads, state, params, **row.extra(loss, params))
    return optax.apply_updates(params, updates), state


def run(row: Row, tx: Any, params: Any, num_steps: int = NUM_STEPS, loss: Any = loss):
    """Plain steps, eager if possible."""
    state, step = tx.init(params), lambda p, s: one_step(row, tx, p, s, loss)
    step = jax.jit(step) if row.jitted else step
    for _ in range(num_steps):
        params, state = step(params, state)
    return params, state


def one_leaf(row: Row, grads: Any, params: Any, extra: dict[str, Any]) -> jax.Array:
    """The update of leaf "a" by an optimizer that has only this leaf."""
    tx, extra = row(), {name: tree["a"] for name, tree in extra.items()}
    return tx.update(grads["a"], tx.init(params["a"]), params["a"], **extra)[0]


def assert_close(tree: Any, other: Any, rtol: float = RTOL) -> None:
    """Same structure, dtypes and, to rounding, values."""
    chex.assert_trees_all_equal_dtypes(tree, other)
    chex.assert_trees_all_close(tree, other, rtol=rtol, atol=TIGHT)


def trace_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Raises when `fn` is traced, that is called by `jax.jit`, a second time."""
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args)
        assert len(calls) == 1, "traced a second time"
        return fn(*args)

    return counted


# --- the contract


@every_row
def test_jit_equals_eager(row):
    """Oracle: eager."""
    tx, params = row(), make_params()
    expected, _ = run(row, tx, params)
    step = jax.jit(lambda p, s: one_step(row, tx, p, s))
    state = tx.init(params)
    for _ in range(NUM_STEPS):
        params, state = step(params, state)
    assert_close(params, expected)


@every_row
def test_scan_equals_a_loop(row):
    """Oracle: eager."""
    tx, params = row(), make_params()
    expected, _ = run(row, tx, params)
    body = lambda carry, _: (one_step(row, tx, *carry), None)  # noqa: E731
    (found, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=NUM_STEPS)
    assert_close(found, expected)


@every_row
def test_vmap_over_seeds_equals_one_seed_at_a_time(row):
    """Oracle: eager, seed by seed."""
    tx, params = row(), make_params()
    seeds = [jax.tree.map(lambda p, s=s: p + s, params) for s in (0.0, 0.5, -1.0)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    found, _ = jax.vmap(lambda p: run(row, tx, p))(stacked)
    for i, seed in enumerate(seeds):
        expected, _ = run(row, tx, seed)
        assert_close(jax.tree.map(lambda x, i=i: x[i], found), expected)


@every_row
def test_it_chains_behind_clipping(row):
    """Oracle: clipping by hand."""
    tx = optax.chain(optax.clip_by_global_norm(0.5), row())
    params, plain = make_params(), row()
    expected, state = params, plain.init(params)
    for _ in range(NUM_STEPS):
        grads = jax.grad(loss)(expected)
        grads = optax.tree.scale(0.5 / optax.tree.norm(grads), grads)
        extra = row.extra(loss, expected)
        updates, state = plain.update(grads, state, expected, **extra)
        expected = optax.apply_updates(expected, updates)
    found, _ = run(row, tx, params)
    assert_close(found, expected)


@every_row
def test_masked_leaves_pass_through(row):
    """Oracle: the optimizer on the chosen leaf alone, the gradient on the others."""
    params = {"a": jnp.ones(3), "b": jnp.full(2, 2.0)}
    grads = jax.grad(loss)(params)
    extra = row.extra(loss, params)
    tx = optax.masked(row(), {"a": True, "b": False})
    if row.outermost:
        with pytest.raises(ValueError, match="outside"):
            tx.init(params)
        return
    updates, _ = tx.update(grads, tx.init(params), params, **extra)
    assert_array_equal(updates["b"], grads["b"])
    if row.elementwise:
        assert_allclose(updates["a"], one_leaf(row, grads, params, extra), rtol=TIGHT)


@every_row
def test_partition_runs_each_leaf_by_its_label(row):
    """Oracle: the optimizer, and plain SGD, each on its leaf alone."""
    params = {"a": jnp.ones(3), "b": jnp.full(2, 2.0)}
    grads = jax.grad(loss)(params)
    tx = optax.partition({"x": row(), "y": optax.sgd(0.1)}, {"a": "x", "b": "y"})
    if row.outermost:
        with pytest.raises(ValueError, match="outside"):
            tx.init(params)
        return
    extra = row.extra(loss, params)
    updates, _ = tx.update(grads, tx.init(params), params, **extra)
    assert_allclose(updates["b"], -0.1 * grads["b"])
    if row.elementwise:
        assert_allclose(updates["a"], one_leaf(row, grads, params, extra), rtol=TIGHT)


@every_row
def test_multi_steps_takes_one_step_on_the_mean_gradient(row):
    """Oracle: the optimizer on the mean of two gradients."""
    params, tx, plain = make_params(), optax.MultiSteps(row(), 2), row()
    grads = jax.grad(loss)(params)
    extra = row.extra(loss, params)
    state = tx.init(params)
    zeros, state = tx.update(optax.tree.scale(0.5, grads), state, params, **extra)
    updates, _ = tx.update(optax.tree.scale(1.5, grads), state, params, **extra)
    expected, _ = plain.update(grads, plain.init(params), params, **extra)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


@every_alias
def test_injected_hyperparams_can_change_without_a_second_compile(row):
    """Oracle: the optimizer made with the constants."""
    params = make_params()
    tx = optax.inject_hyperparams(row.make)(**row.options)
    step = jax.jit(trace_once(lambda p, s: one_step(row, tx, p, s)))
    expected, _ = run(row, row(), params, 1)
    found, state = step(params, tx.init(params))
    assert_close(found, expected)
    state.hyperparams["learning_rate"] = jnp.zeros_like(
        state.hyperparams["learning_rate"]
    )
    frozen, _ = step(found, state)
    assert_close(frozen, found)


BOUND = [("adan", name, {}) for name in ("b1", "b2", "b3")]
BOUND += [
    (alias, name, {}) for alias in ("adahessian", "sophia") for name in ("b1", "b2")
]
BOUND += [("mfac", "momentum", {"window": 2, "damping": 0.5})]
every_decay = pytest.mark.parametrize(
    ("alias", "name", "options"), BOUND, ids=[f"{row[0]}-{row[1]}" for row in BOUND]
)


@every_decay
def test_a_decay_that_is_1_in_float32_is_refused_or_seen(alias, name, options):
    """Oracle: the message for a number; a NaN for an array, which is not read."""
    make, grads = getattr(ok.optim, alias), jnp.ones(3, jnp.float32)
    with pytest.raises(ValueError, match=rf"`ok\.optim\.{alias}` .*{name}=0.999999"):
        make(0.1, **options, **{name: 1 - 2e-8})
    for decay in (jnp.float32(1 - 2e-8), lambda count: jnp.float32(1.0)):
        tx = optax.with_extra_args_support(make(0.1, **options, **{name: decay}))
        extra = {"hessian_diag": grads}
        updates, _ = tx.update(grads, tx.init(grads), grads, **extra)
        assert np.all(np.isnan(updates))


@every_decay
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_hyperparameters_injected_beside_narrow_params_are_float32(
    alias, name, options, dtype
):
    """Oracle: the optimizer made with the numbers; in bfloat16, 0.999 would be 1."""
    make, grads = getattr(ok.optim, alias), jnp.ones(3, dtype)
    options, static = options | {name: 0.999}, "window" if options else ()
    inject = partial(optax.inject_hyperparams, make, static_args=static)
    with pytest.raises(TypeError, match=rf"{alias}`.*float32.*hyperparam_dtype=jnp.f"):
        inject()(learning_rate=0.1, **options).init(grads)
    found = inject(hyperparam_dtype=jnp.float32)(learning_rate=0.1, **options)
    expected, extra = make(0.1, **options), {"hessian_diag": grads}
    expected = optax.with_extra_args_support(expected)
    found, expected = (
        tx.update(grads, tx.init(grads), grads, **extra)[0] for tx in (found, expected)
    )
    assert found.dtype == dtype
    assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.complex64], ids=str)
@pytest.mark.parametrize(
    "number",
    [
        np.float64,
        jnp.float32,
        jnp.bfloat16,
        jnp.asarray,
        lambda x: lambda count: jnp.float32(x),
        lambda x: lambda count: np.float64(x),
        lambda x: lambda count: jnp.bfloat16(x),
    ],
    ids=["np64", "f4", "bf16", "weak", "to_f4", "to_np64", "to_bf16"],
)
@every_alias
def test_rates_of_any_dtype_keep_the_dtype_of_the_leaf(row, number, dtype):
    """Oracle: the same numbers as Python floats, which have no dtype."""
    if dtype == jnp.complex64 and not row.complex_leaves:
        pytest.skip("refused in init")
    params = {"w": jnp.array([1.0, -2.0], dtype)}
    rates = {"learning_rate": 0.125}  # exact in every dtype
    if row.make is sgd_prox:  # optax' own link does not keep it
        row = replace(row, make=ok.optim.proximal_weight_decay)
    if "weight_decay" in row.options or row.make is ok.optim.proximal_weight_decay:
        rates |= {"weight_decay": 0.25}
    extra, updates = row.extra(loss, params), []
    for options in (rates, jax.tree.map(number, rates)):
        tx = row(**options)
        updates.append(tx.update(params, tx.init(params), params, **extra)[0])
    chex.assert_trees_all_equal_dtypes(updates[1], params)
    chex.assert_trees_all_close(*updates, rtol=TIGHT)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}], ids=["plain", "decay"])
def test_hyperparameters_injected_beside_complex_params_are_real(options):
    """Oracle: the numbers; optax makes them complex, and a cast to real would warn."""
    params = {"z": jnp.array([1.0 + 2.0j, -3.0]), "x": jnp.ones(2)}
    plain = ok.optim.adan(0.1, proximal=False, **options)
    make = partial(ok.optim.adan, proximal=False)
    injected = optax.inject_hyperparams(make)(learning_rate=0.1, **options)
    assert jnp.iscomplexobj(injected.init(params).hyperparams["learning_rate"])
    found, expected = (
        tx.update(params, tx.init(params), params)[0] for tx in (injected, plain)
    )
    chex.assert_trees_all_equal_dtypes(found, params)
    chex.assert_trees_all_close(found, expected, rtol=TIGHT)


@pytest.mark.parametrize("zero", [{}, {"weight_decay": 0.0}], ids=["default", "zero"])
@pytest.mark.parametrize("alias", ["adan", "adahessian", "sophia", "mfac"])
def test_injected_hyperparams_leave_the_inner_state_as_it_is(alias, zero):
    """Oracle: the structure without injection; without decay no params are needed."""
    make, grads, static = getattr(ok.optim, alias), jnp.ones(3), ()
    if alias == "mfac":
        make, static = partial(make, window=2, damping=0.5), ("window",)
    plain = make(0.1, **zero)
    injected = optax.inject_hyperparams(make, static)(learning_rate=0.1, **zero)
    found, expected = injected.init(grads).inner_state, plain.init(grads)
    chex.assert_trees_all_equal_structs(found, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    for tx in (plain, injected)[: 1 if zero else 2]:
        tx = optax.with_extra_args_support(tx)
        updates, _ = tx.update(grads, tx.init(grads), hessian_diag=grads)
        assert np.all(updates < 0)


def test_momentum_of_zero_is_a_link_like_that_of_optax():
    """Oracle: M-FAC without momentum; its state has a mean, injected or not."""
    make = partial(ok.optim.mfac, window=2, damping=0.5, momentum=0.0)
    injected = optax.inject_hyperparams(make, "window")(learning_rate=0.1)
    params = jnp.array([1.0, -2.0])
    state = make(0.1).init(params)
    chex.assert_trees_all_equal_structs(injected.init(params).inner_state, state)
    found, _ = make(0.1).update(params, state)
    plain = ok.optim.mfac(0.1, 2, 0.5)
    assert_allclose(found, plain.update(params, plain.init(params))[0], rtol=TIGHT)


@every_alias
def test_a_schedule_is_read_at_the_count_of_the_step(row):
    """Oracle: constant learning rates, one step each from the same moments."""
    params = make_params()
    rates = jnp.asarray(0.1 / (1 + np.arange(NUM_STEPS)))
    tx = row(learning_rate=lambda count: rates[count])
    expected, state = params, row().init(params)
    for rate in rates:
        expected, state = one_step(row, row(learning_rate=float(rate)), expected, state)
    found, _ = run(row, tx, params)
    assert_close(found, expected)


@every_row
def test_mixed_bfloat16_and_float32_leaves_keep_their_dtypes(row):
    """Oracle: float32 throughout, to bfloat16 rounding; moments are float32."""
    exact = make_params(jnp.float32)
    mixed = exact | {"w": exact["w"].astype(jnp.bfloat16)}
    exact = exact | {"w": mixed["w"].astype(jnp.float32)}
    tx = row()
    grads = jax.grad(loss)(mixed)
    updates, state = tx.update(grads, tx.init(mixed), mixed, **row.extra(loss, mixed))
    chex.assert_trees_all_equal_dtypes(updates, mixed)
    for name in row.moments:
        moment = optax.tree.get(state, name)
        assert {leaf.dtype for leaf in jax.tree.leaves(moment)} == {jnp.dtype("f4")}
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    expected, _ = tx.update(wide, tx.init(exact), exact, **row.extra(loss, exact))
    cast = jax.tree.map(lambda u: u.astype(jnp.float32), updates)
    # Of the gradient, and of a curvature that the transform makes itself.
    chex.assert_trees_all_close(cast, expected, rtol=4 * 2**-8, atol=1e-4)


@every_row
def test_all_bfloat16_params_take_steps_inside_scan(row):
    """Oracle: identity of dtypes, and the loss goes down."""
    params = make_params(jnp.bfloat16)
    tx = row()
    body = lambda carry, _: (one_step(row, tx, *carry), None)  # noqa: E731
    (found, _), _ = jax.lax.scan(body, (params, tx.init(params)), length=3)
    chex.assert_trees_all_equal_dtypes(found, params)


@every_row
def test_complex_leaves_step_or_are_refused(row):
    """Oracle: a real problem written in complex numbers."""
    params = {"z": jnp.array([1.0 + 0j, -2.0 + 0j])}
    tx = row()
    if not row.complex_leaves:
        with pytest.raises(TypeError, match="complex"):
            tx.init(params)
        return
    real = {"z": params["z"].real}
    expected, _ = run(row, tx, real)
    found, _ = run(row, tx, params)
    assert_allclose(found["z"].real, expected["z"], rtol=10 * RTOL)
    assert_allclose(found["z"].imag, 0.0, atol=TIGHT)


@pytest.mark.parametrize("dtype", ["c8", "f4", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].complex_leaves])
def test_leaves_of_any_dtype_step_under_strict_promotion(name, dtype):
    """Oracle: JAX's standard promotion, bit for bit; the dtypes are those of leaves."""
    row, params = ROWS[name], {"z": jnp.array([1.0, -2.0], dtype), "x": jnp.ones(2)}
    grads = jax.tree.map(lambda p: p / 2, params)
    extra = row.extra(loss, params)
    step = jax.jit(lambda tx, s: tx.update(grads, s, params, **extra), static_argnums=0)
    found = {}
    for promotion in ("strict", "standard"):
        with jax.numpy_dtype_promotion(promotion):
            tx = row()
            _, state = step(tx, tx.init(params))
            found[promotion] = step(tx, state)
    chex.assert_trees_all_equal_dtypes(found["strict"][0], params)
    chex.assert_trees_all_equal_shapes_and_dtypes(*found.values())
    chex.assert_trees_all_equal(*found.values())


@every_row
def test_unknown_extra_arguments_are_ignored(row):
    """Oracle: the update without them."""
    params, tx = make_params(), row.make(**row.options)
    grads, extra = jax.grad(loss)(params), row.extra(loss, params)
    state = tx.init(params)
    expected = tx.update(grads, state, params, **extra)
    unknown = {"value": jnp.ones(()), "what": object(), "grad": grads}
    found = tx.update(grads, state, params, **extra, **unknown)
    chex.assert_trees_all_equal(found, expected)


@every_row
def test_none_empty_and_scalar_leaves_come_back_as_they_were(row):
    """Oracle: identity of structure, shapes and dtypes; a bare leaf is a tree too."""
    for params in (make_params(), jnp.array(2.0), {}, {"only": None}):
        found, _ = run(row, row(), params, 2)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, params)


@every_row
def test_donated_buffers_can_be_reused(row):
    """Oracle: the same steps without donation; `init` shares no buffer with params."""
    tx, params = row(), make_params()
    expected, _ = run(row, tx, params)
    step = jax.jit(lambda p, s: one_step(row, tx, p, s), donate_argnums=(0, 1))
    for _ in range(2):  # a second start must not meet a buffer the first one gave away
        found = jax.tree.map(jnp.copy, params)
        state = tx.init(found)
        for _ in range(NUM_STEPS):
            found, state = step(found, state)
        assert_close(found, expected)


@every_row
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_sharded_params_stay_sharded_in_every_state(row, axis_type):
    """Oracle: one device."""
    mesh = jax.make_mesh(
        (4,), ("x",), axis_types=(axis_type,), devices=jax.devices()[:4]
    )
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {"w": jnp.arange(8.0).reshape(8, 1) + 1, "b": jnp.ones(4)}
    tx = row()
    expected, _ = run(row, tx, params)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, sharding)
        state = tx.init(sharded)
        step = jax.jit(lambda p, s: one_step(row, tx, p, s))
        found = sharded
        for _ in range(NUM_STEPS):
            found, state = step(found, state)
    rtol = RTOL if X64 else row.float32
    assert_close(jax.device_get(found), jax.device_get(expected), rtol)
    for path, leaf in jax.tree_util.tree_leaves_with_path((found, state)):
        fields = {getattr(entry, "name", None) for entry in path}
        spec = PartitionSpec("x")
        if fields & set(row.stacked):
            spec = PartitionSpec(None, "x")
        if fields & set(row.replicated):
            spec = PartitionSpec()
        if leaf.ndim and jnp.issubdtype(leaf.dtype, jnp.inexact):  # not a random key
            expected = NamedSharding(mesh, spec)
            assert leaf.sharding.is_equivalent_to(expected, leaf.ndim), path


@every_row
def test_a_state_can_be_made_from_shapes_alone(row):
    """Oracle: the shapes, dtypes and structure of the state of the params."""
    params, tx = make_params(), row()
    expected = jax.eval_shape(lambda: tx.init(params))
    shapes = jax.eval_shape(lambda: params)
    for found in (jax.eval_shape(tx.init, shapes), tx.init(shapes)):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)


@every_row
def test_the_step_compiles_once(row):
    """Oracle: a trace counter; weakly typed params must not retrace."""
    params = {"w": jnp.ones(3), "weak": jnp.asarray(1.0)}
    tx = row()
    step = jax.jit(trace_once(lambda p, s: one_step(row, tx, p, s)))
    state = tx.init(params)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
    for _ in range(3):
        stepped, state = step(params, state)
        params = stepped | {"weak": params["weak"]}


@every_row
def test_a_saved_state_resumes_bit_for_bit(row):
    """Oracle: the run that was not interrupted."""
    tx, params = row(), make_params()
    step = jax.jit(lambda p, s: one_step(row, tx, p, s))
    state = tx.init(params)
    for _ in range(3):
        params, state = step(params, state)
    leaves, treedef = jax.tree.flatten((params, state))
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    loaded = np.load(file)
    resumed = treedef.unflatten([loaded[f"arr_{i}"] for i in range(len(leaves))])
    for _ in range(3):
        params, state = step(params, state)
        resumed = step(*resumed)
    chex.assert_trees_all_equal((params, state), resumed)


@pytest.mark.x64
@every_row
def test_steps_have_derivatives_also_where_gradient_and_curvature_are_zero(row):
    """Oracle: finite differences of a loss after three steps, in the loss' scale."""
    params = {"w": jnp.array([1.0, -2.0, 0.5]), "idle": jnp.ones(2)}

    def trained(scale):
        def scaled(params):
            return scale * loss({"w": params["w"]}) + 0 * jnp.sum(params["idle"])

        def step(params, state):
            extra = row.extra(scaled, params)
            if "hessian_diag" in extra:
                idle = {"w": scale, "idle": jnp.zeros(())}
                extra = {
                    "hessian_diag": jax.tree.map(jnp.multiply, *extra.values(), idle)
                }
            grads = jax.grad(scaled)(params)
            updates, state = tx.update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        tx, now = row(), params
        state = tx.init(now)
        for _ in range(3):
            now, state = step(now, state)
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(now))

    trained = jax.jit(trained)
    h, s = 1e-5, jnp.asarray(0.7)
    want = (trained(s + h) - trained(s - h)) / (2 * h)
    for derivative in (jax.jacfwd, jax.jacrev):
        assert_allclose(derivative(trained)(s), want, rtol=1e-6, atol=1e-8)


@every_row
def test_nan_gradients_are_seen_and_apply_if_finite_survives_them(row):
    """Oracle: a NaN comes out where it went in; guarded, nothing has happened."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    grads = jax.grad(loss)(params)
    bad = grads | {"a": grads["a"].at[1].set(jnp.nan)}
    extra = row.extra(loss, params)
    tx = row()
    updates, _ = tx.update(bad, tx.init(params), params, **extra)
    assert np.isnan(updates["a"][1])
    if row.elementwise:
        assert not np.any(np.isnan(updates["b"]))
    guarded = optax.apply_if_finite(tx, max_consecutive_errors=3)
    _, state = guarded.update(grads, guarded.init(params), params, **extra)
    zeros, after = guarded.update(bad, state, params, **extra)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
    chex.assert_trees_all_equal(after.inner_state, state.inner_state)


TWO = {"w": jnp.ones(3), "b": jnp.ones(2)}


@pytest.mark.parametrize(
    ("grads", "error", "match"),
    [
        ({"w": jnp.ones(3)}, ValueError, r"structure.*Call `init`"),
        (
            TWO | {"b": jnp.ones(4)},
            ValueError,
            r"got \(4,\) at gradients\['b'\], not \(2,\)",
        ),
        pytest.param(
            TWO | {"b": jnp.ones(2, jnp.float32)},
            TypeError,
            r"float32 at gradients\['b'\], not float64.*cast",
            marks=pytest.mark.x64,
        ),
    ],
    ids=["structure", "shape", "dtype"],
)
@pytest.mark.parametrize(
    "row", [row for row in ROWS.values() if row.moments], ids=lambda row: row.make
)
def test_gradients_unlike_the_state_are_refused(row, grads, error, match):
    """Oracle: the message names the call, what arrived and what to do."""
    tx = row()
    with pytest.raises(
        error, match=r"(?s)`ok\.optim\.\w+` needs gradients in .*" + match
    ):
        tx.update(grads, tx.init(TWO), TWO)
