"""States survive a round trip to disk, and killed training runs can be resumed."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import killed
import lineax as lx
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit as ok

NUM_KILLS = 3


def through_orbax(folder: Path, tree, like=None):
    """The tree, saved and restored as `docs/checkpoints.md` says."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder / "state", tree if like is None else like)


def through_a_file(folder: Path, tree):
    """The tree, through the light checkpoint of `tests/killed.py`."""
    killed.save(folder / "state.eqx", tree)
    return killed.restore(folder / "state.eqx", tree)


def assert_same_bits(tree, other):
    """Compares structure, shapes, dtypes (with weakness) and every bit."""
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert jax.typeof(a) == jax.typeof(b)
    assert killed.digest(tree) == killed.digest(other)


@pytest.fixture(scope="module")
def kills(tmp_path_factory):
    """A few kills, and the folder with the checkpoints of the training runs."""
    folder = tmp_path_factory.mktemp("kills")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
            patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        return killed.kill_often(NUM_KILLS, seed=1, folder=folder), folder


def test_a_killed_training_ends_with_the_bits_of_one_that_was_not(kills):
    """Oracle: the same training run without a kill."""
    tally, _ = kills
    assert tally.kills == NUM_KILLS
    assert tally.resumes > 0
    assert tally.lost == 0


@pytest.mark.parametrize("through", [through_orbax, through_a_file])
def test_the_states_of_all_methods_come_back_bit_for_bit(kills, tmp_path, through):
    """Oracle: what was saved, the states after the last step of a run."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        like = jax.eval_shape(killed.start)._replace(key=jr.key(0))
        trained = killed.restore(kills[1] / "0" / "checkpoint.eqx", like)
        assert int(trained.step) == killed.NUM_STEPS
        assert_same_bits(through(tmp_path, trained), trained)


@pytest.mark.parametrize("through", [through_orbax, through_a_file])
def test_every_kind_of_leaf_comes_back(through, tmp_path, key):
    """Oracle: what was saved; the operator's static parts are those of `like`."""
    P = ok.invert(ok.LowRank(jr.normal(key, (3, 5))), ok.Woodbury(), damping=0.1)
    chain = optax.chain(optax.clip(1.0), ok.optim.adan(0.1), optax.ema(0.9))
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": [None, jnp.zeros(2)]}
    tree = {
        "key": key,
        "keys": jr.split(jr.key(1, impl="rbg"), 2),
        "P": P,
        "optax": chain.init(params),
        "int": jnp.arange(3, dtype=jnp.int8),
        "bool": jnp.array([True, False]),
        "special": jnp.array([-0.0, jnp.nan, jnp.inf, 5e-324]),
        "halves": jnp.array([1 / 3, -0.0], jnp.bfloat16),
        "scalar": jnp.array(2.5, float),
    }
    found = through(tmp_path, tree)
    assert_same_bits(found, tree)
    right = jnp.arange(5.0)
    np.testing.assert_array_equal(found["P"].mv(right), P.mv(right))
    assert lx.is_symmetric(found["P"])


def test_orbax_refuses_an_empty_leaf(tmp_path):
    """Oracle: its message. `docs/checkpoints.md` mentions this; nothing is dropped."""
    with pytest.raises(ValueError, match="zero size"):
        through_orbax(tmp_path, {"a": jnp.ones(2), "empty": jnp.zeros((0, 2))})


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [(None, "x"), ("x", None), ("x", "y")],
    ids=["shards", "gathers", "shards anew"],
)
def test_a_state_is_restored_onto_another_sharding(tmp_path, saved, wanted):
    """Oracle: the saved values, and the sharding that was asked for."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    tx = ok.optim.mfac(0.1, 4, 0.5, momentum=0.9)

    def fresh(axis):
        """A new state for parameters that are split along an axis of the mesh."""
        sharding = NamedSharding(mesh, PartitionSpec(axis))
        return tx.init({"w": jax.device_put(np.zeros((8, 2), "f4"), sharding)})

    def filled(leaf):
        values = np.arange(leaf.size).reshape(leaf.shape).astype(leaf.dtype)
        return jax.device_put(values, leaf.sharding)

    state, like = jax.tree.map(filled, fresh(saved)), fresh(wanted)
    found = through_orbax(tmp_path, state, like)
    window = optax.tree.get(found, "window")["w"]
    expected = NamedSharding(mesh, PartitionSpec(None, wanted))
    assert window.sharding.is_equivalent_to(expected, window.ndim)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(like), strict=True):
        assert a.sharding == b.sharding


def test_an_unfinished_file_leaves_the_old_one_whole(tmp_path, monkeypatch):
    """Oracle: the old values, after an interrupted write."""
    path = tmp_path / "state.eqx"
    killed.save(path, {"a": jnp.ones(3)})

    def break_off(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", break_off)
    with pytest.raises(OSError, match="full"):
        killed.save(path, {"a": jnp.zeros(3)})
    restored = killed.restore(path, {"a": jnp.zeros(3)})
    np.testing.assert_array_equal(restored["a"], np.ones(3))
