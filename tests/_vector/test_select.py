"""The smallest entries of a tree, against a sort."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from optkit._vector import smallest


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_smallest_over_all_leaves_equals_a_sort(count, key):
    """Oracle: NumPy's sort; mixed dtypes, and only where the mask is true."""
    tree = {
        "a": jr.uniform(key, (5,)),
        "b": jr.uniform(jr.fold_in(key, 1), (2, 2), "f4"),
    }
    mask = {"a": np.array([1, 1, 0, 1, 1], bool), "b": np.ones((2, 2), bool)}
    found = np.concatenate([np.ravel(x) for x in smallest(count, tree, mask).values()])
    flat = np.concatenate([np.ravel(np.asarray(x, float)) for x in tree.values()])
    flat[2] = np.inf
    assert_array_equal(np.flatnonzero(found), np.sort(np.argsort(flat)[:count]))


@pytest.mark.parametrize("place", [lambda x: x, "sharded", jax.jit])
@pytest.mark.parametrize("count", [0, 5, 9, 40, 99])
def test_equal_entries_are_taken_in_order(count, place, key):
    """Oracle: NumPy's stable sort; five values, empty leaves, on 1 and 8 devices."""
    tree = [
        jr.randint(key, (8, 2, 3), 0, 5).astype("f4"),
        jnp.zeros((0, 2)),
        jnp.ones((), jnp.bfloat16),
        jr.randint(jr.fold_in(key, 1), (16,), 0, 5).astype("f2"),
    ]
    mask = [jr.bernoulli(key, 0.7, x.shape) for x in tree]
    flat = np.concatenate([np.ravel(x).astype(float) for x in tree])
    flat[~np.concatenate([np.ravel(m) for m in mask])] = np.inf
    want = np.argsort(flat, kind="stable")[: min(count, np.isfinite(flat).sum())]
    if place == "sharded":
        mesh = jax.make_mesh((8,), ("x",))
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
        tree = [jax.device_put(x, spec) if x.size > 8 else x for x in tree]
    find = jax.jit(smallest) if place is jax.jit else smallest
    found = np.concatenate([np.ravel(x) for x in find(count, tree, mask)])
    assert_array_equal(np.flatnonzero(found), np.sort(want))
