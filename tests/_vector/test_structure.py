"""Structures of trees, and their entries in one vector."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpy.testing import assert_array_equal
from precision import FLOAT

from optkit._vector import first_difference, from_vector, narrowest_eps, to_vector

X = {
    "matrix": jr.normal(jr.key(0), (8, 3)),
    "none": None,
    "scalar": jr.normal(jr.key(1), ()).astype(jnp.float32),
    "half": jr.normal(jr.key(2), (8,)).astype(jnp.bfloat16),
}


def test_a_vector_goes_to_a_tree_and_back():
    # oracle: identity
    vector = to_vector(X)
    assert vector.dtype == FLOAT
    want = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(X)]
    assert_array_equal(vector, np.concatenate(want))
    back = from_vector(vector, X)
    assert jax.tree.structure(back) == jax.tree.structure(X)
    for leaf, like in zip(*map(jax.tree.leaves, (back, X)), strict=True):
        assert leaf.dtype == like.dtype
        assert_array_equal(leaf, like)


def test_a_tree_without_leaves_is_a_vector_without_entries():
    # oracle: identity
    assert to_vector({}).shape == (0,)
    assert from_vector(jnp.zeros(0), {"none": None}) == {"none": None}


def test_the_first_difference_is_found():
    # oracle: identity
    assert first_difference(X, X) is None
    assert first_difference({}, X).kind == "structure"
    other = X | {"matrix": jnp.zeros((3, 8))}
    found = first_difference(other, X)
    assert found == ("shape", "['matrix']", (3, 8), (8, 3))
    found = first_difference(X | {"half": X["half"].astype(jnp.float32)}, X)
    assert found == ("dtype", "['half']", jnp.float32, jnp.bfloat16)
    narrow = X | {"half": jnp.ones(8, jnp.float16)}
    assert first_difference(narrow, X, dtype_of=None) is None


def test_the_narrowest_leaf_sets_the_rounding():
    # oracle: closed form
    assert narrowest_eps(X) == 2.0**-7
    assert narrowest_eps({"scalar": X["scalar"], "wide": X["matrix"]}) == 2.0**-23
    assert narrowest_eps({}) == 0
