"""The smallest entries of a tree, against a sort."""

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
