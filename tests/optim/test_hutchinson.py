"""`ok.optim.with_hutchinson`: which diagonal it passes on, and when."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal
from oracles import AdaHessian, Sophia
from precision import assert_allclose

import optkit as ok
from optkit._vector import signs

H = np.array([[2.0, 1.0, 0.5], [1.0, 3.0, -0.4], [0.5, -0.4, 1.0]])


def quadratic(params):
    """Half xᵀHx."""
    return 0.5 * params @ jnp.asarray(H) @ params


def spread(params, batch):
    """Curvature in and across two leaves, and in the batch."""
    pred = jnp.tanh(batch @ params["w"]) + params["b"]
    return jnp.mean(pred**2)


PARAMS = {"w": jnp.array([0.3, -1.0]), "b": jnp.array(0.2)}
BATCH = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, 0.0], [2.0, -2.0]])


def diag_of(state, num_probes=1):
    """H's estimated diagonal with the probes that the state is about to draw."""
    key = jr.fold_in(jr.wrap_key_data(state.key_data), state.count)
    keys = [key] if num_probes == 1 else jr.split(key, num_probes)
    probes = [np.asarray(signs(key, jnp.ones(3))) for key in keys]
    return np.mean([z * (H @ z) for z in probes], axis=0)


def reads_diag():
    """A transform whose updates are the diagonal it receives."""
    update = lambda u, s, p=None, *, hessian_diag, **extra: (hessian_diag, s)  # noqa: E731
    return optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)


@pytest.mark.parametrize(
    ("make", "oracle"),
    [
        (lambda: ok.optim.adahessian(0.1, weight_decay=0.1), AdaHessian),
        (lambda: ok.optim.sophia(0.1, weight_decay=0.1, update_interval=3), Sophia),
    ],
    ids=["adahessian", "sophia"],
)
@pytest.mark.parametrize(("interval", "num_probes"), [(1, 1), (3, 1), (3, 2)])
def test_twenty_steps_equal_the_transcription(make, oracle, interval, num_probes):
    """Oracle: NumPy, from the same probes, fed with the stale diagonal in between."""
    theta = np.array([1.0, -2.0, 0.5])
    options = {"k": 3} if oracle is Sophia else {}
    oracle = oracle(theta, 0.1, weight_decay=0.1, **options)
    tx = ok.optim.with_hutchinson(
        make(), key=jr.key(1), update_interval=interval, num_probes=num_probes
    )

    @jax.jit
    def step(params, state):
        grads = jax.grad(quadratic)(params)
        updates, state = tx.update(grads, state, params, value_fn=quadratic)
        return optax.apply_updates(params, updates), state

    params = jnp.asarray(theta)
    state = tx.init(params)
    for i in range(20):
        if i % interval == 0:
            diag = diag_of(state, num_probes)
        params, state = step(params, state)
        expected = oracle.step(H @ oracle.theta, diag)
        assert_allclose(params, expected, rtol=1e-12, atol=1e-12)


def test_lazy_refresh_has_the_right_scale():
    """Oracle: closed form; averages less often than it corrects: up to √10 off."""
    tx = ok.optim.with_hutchinson(
        ok.optim.scale_by_adahessian(eps=0.0), key=jr.key(0), update_interval=10
    )
    params = jnp.array([1.0, -3.0])
    state = tx.init(params)
    value_fn = lambda p: jnp.sum(p**2)  # noqa: E731
    step = jax.jit(lambda g, s: tx.update(g, s, params, value_fn=value_fn))
    for _ in range(15):
        updates, state = step(2 * params, state)
        assert_allclose(updates, params, rtol=1e-12)


@pytest.mark.parametrize("interval", [1, 10])
def test_the_objective_is_traced_once_and_run_once_in_an_interval(interval):
    """Oracle: counters at trace and at run time."""
    traced, ran = [], []

    def value_fn(params):
        traced.append(1)
        jax.debug.callback(lambda: ran.append(1))
        return jnp.sum(params**4)

    tx = ok.optim.with_hutchinson(reads_diag(), key=jr.key(0), update_interval=interval)
    params = jnp.ones(3)
    step = jax.jit(lambda s: tx.update(params, s, params, value_fn=value_fn))
    state = tx.init(params)
    for _ in range(20):
        _, state = step(state)
    jax.effects_barrier()
    assert len(traced) == 1
    assert len(ran) == 20 / interval
    assert (state.hessian_diag is None) == (interval == 1)


@pytest.mark.parametrize("name", ["value_fn", "obj_fn"])
def test_the_objective_gets_the_extra_arguments_it_names(name):
    """Oracle: `ok.value_grad_and_diag` with them; the optimizer gets all."""
    seen = {}

    def update(updates, state, params=None, **extra):
        seen.update(extra)
        return updates, state

    spy = optax.GradientTransformationExtraArgs(lambda p: optax.EmptyState(), update)
    tx = ok.optim.with_hutchinson(spy, key=jr.key(0))
    state = tx.init(PARAMS)
    extra = {name: spread, "batch": BATCH, "value": jnp.ones(())}
    tx.update(PARAMS, state, PARAMS, **extra)
    assert set(seen) == {name, "batch", "value", "hessian_diag"}
    key = jr.fold_in(jr.wrap_key_data(state.key_data), 0)
    expected = ok.value_grad_and_diag(spread)(PARAMS, BATCH, key=key)[2]
    assert_allclose(seen["hessian_diag"]["w"], expected["w"], rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(1e6), tx),
        lambda tx: optax.masked(tx, {"w": True, "b": False}),
        lambda tx: optax.partition(
            {"x": tx, "y": optax.identity()}, {"w": "x", "b": "y"}
        ),
        lambda tx: optax.inject_hyperparams(
            lambda rate: optax.chain(tx, optax.sgd(rate))
        )(-1.0),
        lambda tx: ok.optim.accumulate(tx, 1),
        lambda tx: optax.apply_if_finite(tx, 3),
    ],
    ids=["chain", "masked", "partition", "inject", "accumulate", "if_finite"],
)
def test_it_stands_around_other_wrappers(wrap):
    """Oracle: `ok.optim.adahessian` on the leaf alone, given the same diagonal."""
    tx = ok.optim.with_hutchinson(wrap(ok.optim.scale_by_adahessian()), key=jr.key(0))
    grads = jax.grad(spread)(PARAMS, BATCH)
    state = tx.init(PARAMS)
    step = jax.jit(lambda s: tx.update(grads, s, PARAMS, value_fn=spread, batch=BATCH))
    updates, _ = step(state)
    key = jr.fold_in(jr.wrap_key_data(state.key_data), 0)
    diag = ok.value_grad_and_diag(spread)(PARAMS, BATCH, key=key)[2]
    plain = ok.optim.scale_by_adahessian()
    expected, _ = plain.update(
        grads["w"], plain.init(PARAMS["w"]), hessian_diag=diag["w"]
    )
    assert_allclose(updates["w"], expected, rtol=1e-10)


def test_seeds_draw_different_probes_under_vmap():
    """Oracle: each seed alone; one constant key, or a key for each seed."""
    f = lambda p: jnp.sum(jnp.sin(jnp.arange(1.0, 41.0)) * p) ** 2  # noqa: E731

    def first(key, params):
        tx = ok.optim.with_hutchinson(reads_diag(), key=key)
        return tx.update(params, tx.init(params), params, value_fn=f)[0]

    seeds = jr.normal(jr.key(3), (4, 40))
    constant = jax.vmap(lambda p: first(jr.key(0), p))(seeds)
    assert len(np.unique(constant, axis=0)) == 4
    assert_array_equal(constant[2], first(jr.key(0), seeds[2]))
    keys = jr.split(jr.key(5), 4)
    same_params = jax.vmap(first, in_axes=(0, None))(keys, seeds[0])
    assert len(np.unique(same_params, axis=0)) == 4
    assert_array_equal(same_params[1], first(keys[1], seeds[0]))


def test_steps_draw_different_probes_and_a_restart_the_same():
    """Oracle: identity; a compiled step draws the same as an eager one."""
    f = lambda p: jnp.sum(p) ** 2  # noqa: E731
    tx, params = ok.optim.with_hutchinson(reads_diag(), key=jr.key(0)), jnp.ones(40)
    first, state = tx.update(params, tx.init(params), params, value_fn=f)
    second, _ = tx.update(params, state, params, value_fn=f)
    step = jax.jit(lambda s: tx.update(params, s, params, value_fn=f))
    again, _ = step(tx.init(params))
    assert np.any(first != second)
    assert_array_equal(first, again)


@pytest.mark.parametrize("make_key", [jr.key, jr.PRNGKey], ids=["typed", "raw"])
def test_the_key_is_the_caller_s_to_keep_or_donate(make_key):
    """Oracle: identity; donating the state does not delete the key either."""
    key, params = make_key(0), jnp.ones(3)
    tx = ok.optim.with_hutchinson(reads_diag(), key=key, update_interval=2)
    f = lambda p: jnp.sum(p**2)  # noqa: E731
    step = jax.jit(
        lambda s: tx.update(params, s, params, value_fn=f)[1], donate_argnums=0
    )
    for _ in range(2):
        state = step(step(tx.init(params)))
    assert not key.is_deleted()
    key.delete() if make_key is jr.PRNGKey else jr.key_data(key).delete()
    assert_allclose(step(tx.init(params)).hessian_diag, 2.0)
    assert state.key_data.dtype == jnp.uint32


def test_sharded_and_single_device_diagonals_agree():
    """Oracle: one device; params split over an explicit mesh, batch over another."""
    f = lambda p: jnp.mean(jnp.sin(p) * jnp.sum(p**2))  # noqa: E731
    params = jnp.linspace(-1.0, 1.0, 64)
    tx = ok.optim.with_hutchinson(reads_diag(), key=jr.key(0), update_interval=2)
    step = jax.jit(lambda p, s: tx.update(p, s, p, value_fn=f))
    expected, _ = step(params, tx.init(params))
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(params, sharding)
        found, state = step(sharded, tx.init(sharded))
    assert found.sharding.is_equivalent_to(sharding, 1)
    assert state.hessian_diag.sharding.is_equivalent_to(sharding, 1)
    assert_allclose(jax.device_get(found), expected, rtol=1e-10, atol=1e-13)


def test_the_diagonal_is_averaged_over_devices_with_the_same_probes_on_each():
    """Oracle: one device with the whole batch."""
    tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0))
    batch = jnp.tile(BATCH, (4, 1)) * jnp.linspace(0.5, 2.0, 16)[:, None]
    state = tx.init(PARAMS)

    def step(loss, params, state, batch):
        grads = jax.grad(loss)(params, batch)
        return tx.update(grads, state, params, value_fn=loss, batch=batch)[0]

    expected = step(spread, PARAMS, state, batch)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("x"), PartitionSpec()
    data = jax.device_put(batch, NamedSharding(mesh, split))
    found = jax.jit(lambda p, s, b: step(spread, p, s, b))(PARAMS, state, data)
    assert_allclose(found["w"], expected["w"], rtol=1e-10)

    def mean_loss(params, batch):
        return jax.lax.pmean(spread(params, batch), "x")

    mapped = jax.shard_map(
        lambda p, s, b: step(mean_loss, p, s, b),
        mesh=mesh,
        in_specs=(whole, whole, split),
        out_specs=whole,
    )
    assert_allclose(
        jax.jit(mapped)(PARAMS, state, data)["w"], expected["w"], rtol=1e-10
    )


@pytest.mark.parametrize(("interval", "num_probes"), [(1, 1), (2, 1), (1, 2)])
@pytest.mark.parametrize("of", ["mean", "own"])
@pytest.mark.parametrize("mapping", ["tracked", "varying", "untracked", "pmap", "vmap"])
def test_a_named_axis_is_averaged_for_any_mapping_and_loss(
    mapping, of, interval, num_probes
):
    """Oracle: one device with the whole batch.

    Without the name, "own" gives n times as much where JAX tracks what varies, and
    what the device's own examples give where it does not, even for "mean".
    """
    options = {"update_interval": interval, "num_probes": num_probes}
    make = functools.partial(
        ok.optim.with_hutchinson, reads_diag(), key=jr.key(0), **options
    )
    plain, tx = make(), make(axis_name="x")
    batch = jnp.tile(BATCH, (4, 1)) * jnp.linspace(0.5, 2.0, 16)[:, None]
    state = tx.init(PARAMS)
    step = jax.jit(
        lambda: plain.update(PARAMS, state, PARAMS, value_fn=spread, batch=batch)
    )
    expected, _ = step()

    def loss(params, batch):
        own = spread(params, batch)
        return jax.lax.pmean(own, "x") if of == "mean" else own

    def mapped(params, state, batch):
        if mapping == "varying":
            params = jax.tree.map(lambda p: jax.lax.pcast(p, "x", to="varying"), params)
        return tx.update(params, state, params, value_fn=loss, batch=batch)[0]

    if mapping in {"pmap", "vmap"}:
        f = getattr(jax, mapping)(mapped, axis_name="x", in_axes=(None, None, 0))
        found = jax.tree.map(lambda x: x[3], f(PARAMS, state, batch.reshape(8, 2, 2)))
    else:
        mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
        split, whole = PartitionSpec("x"), PartitionSpec()
        specs, tracked = (whole, whole, split), mapping != "untracked"
        f = jax.shard_map(
            mapped, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=tracked
        )
        found = jax.jit(f)(PARAMS, state, batch)
    for name in PARAMS:
        assert_allclose(found[name], expected[name], rtol=1e-10)


@pytest.mark.parametrize("interval", [1, 2])
def test_aux_of_the_objective_is_left_out(interval):
    """Oracle: identity with the objective without aux."""
    options = {"key": jr.key(0), "update_interval": interval}

    def with_aux(params, batch):
        return spread(params, batch), {"seen": jnp.asarray(3), "batch": batch}

    plain = ok.optim.with_hutchinson(reads_diag(), **options)
    tx = ok.optim.with_hutchinson(reads_diag(), has_aux=True, **options)
    state = tx.init(PARAMS)
    found, expected = (
        tx.update(PARAMS, state, PARAMS, value_fn=f, batch=BATCH)[0]
        for tx, f in ((tx, with_aux), (plain, spread))
    )
    assert_array_equal(found["w"], expected["w"])
    with pytest.raises(
        ValueError, match=r"with_hutchinson`.*one real scalar, got tuple"
    ):
        plain.update(PARAMS, state, PARAMS, value_fn=with_aux, batch=BATCH)


def test_a_state_of_shapes_alone():
    """Oracle: the shapes of the state for params; there are no bits to fold in."""
    tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0))
    shapes = jax.eval_shape(lambda: PARAMS)
    found, expected = tx.init(shapes), tx.init(PARAMS)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, want in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert (leaf.shape, leaf.dtype) == (want.shape, want.dtype)


@pytest.mark.parametrize(
    "tx",
    [
        ok.optim.adan(0.1, weight_decay=0.1),
        ok.optim.mfac(0.1, 2, 0.5, momentum=0.5, weight_decay=0.1),
        optax.chain(optax.sgd(0.1), ok.optim.proximal_weight_decay(0.1, 0.5)),
    ],
    ids=["adan", "mfac", "proximal_weight_decay"],
)
def test_what_does_not_read_the_diagonal_steps_as_without(tx):
    """Oracle: identity with the transform alone, over steps, its state included."""
    found = expected = jnp.array([0.3, -1.0, 0.2])
    wrapped = ok.optim.with_hutchinson(tx, key=jr.key(0))
    outer, state = wrapped.init(found), tx.init(expected)
    for _ in range(3):
        grads = jax.grad(quadratic)(expected)
        updates, state = tx.update(grads, state, expected)
        expected = optax.apply_updates(expected, updates)
        updates, outer = wrapped.update(grads, outer, found, value_fn=quadratic)
        found = optax.apply_updates(found, updates)
        assert_array_equal(found, expected)
    leaves = zip(
        jax.tree.leaves(outer.inner_state), jax.tree.leaves(state), strict=True
    )
    assert all(np.array_equal(*pair) for pair in leaves)


def test_inside_a_mask_it_says_to_stand_outside():
    """Oracle: the message."""
    tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0))
    for wrapped in (
        optax.masked(tx, {"w": True, "b": False}),
        optax.partition({"x": tx, "y": optax.sgd(0.1)}, {"w": "x", "b": "y"}),
    ):
        with pytest.raises(ValueError, match=r"`ok.optim.with_hutchinson`.*outside"):
            wrapped.init(PARAMS)


@pytest.mark.parametrize(
    ("extra", "params", "match"),
    [
        ({}, PARAMS, r"value_fn=.*obj_fn=.*neither"),
        ({"value_fn": spread, "obj_fn": spread}, PARAMS, r"both"),
        (
            {"value_fn": spread, "hessian_diag": PARAMS},
            PARAMS,
            r"hessian_diag, and got",
        ),
        ({"value_fn": spread}, None, r"params=None"),
        ({"value_fn": lambda p: (p["b"], p["w"])}, PARAMS, r"real scalar.*tuple"),
    ],
)
def test_wrong_arguments_of_update_are_named(extra, params, match):
    """Oracle: the message."""
    tx = ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0))
    with pytest.raises(ValueError, match=r"`ok.optim.with_hutchinson`.*" + match):
        tx.update(PARAMS, tx.init(PARAMS), params, **extra)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"key": jr.split(jr.key(0))}, TypeError, r"one random key"),
        ({"key": jnp.ones(2)}, TypeError, r"one random key"),
        ({"key": jr.key(0), "update_interval": 0}, ValueError, r"update_interval"),
        ({"key": jr.key(0), "num_probes": 0}, ValueError, r"num_probes"),
        ({"key": jr.key(0), "axis_name": 3}, TypeError, r"axis_name"),
    ],
)
def test_bad_arguments_raise_at_construction(options, error, match):
    """Oracle: the message."""
    with pytest.raises(error, match=match):
        ok.optim.with_hutchinson(optax.sgd(0.1), **options)


def test_complex_params_are_refused_with_their_path():
    """Oracle: the message."""
    tx = ok.optim.with_hutchinson(optax.sgd(0.1), key=jr.key(0))
    with pytest.raises(TypeError, match=r"complex\d+ at params\['z'\].*real and imag"):
        tx.init({"z": jnp.ones(2, complex)})
