"""Products with stacked rows, on trees of any leaves and any devices."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from placed import placed
from precision import assert_allclose

from optkit._vector import (
    combine,
    dot,
    gram,
    num_rows,
    project,
    project_blocks,
    zero_rows,
)

ROWS = {
    "matrix": jr.normal(jr.key(0), (4, 8, 3)),
    "none": None,
    "scalar": jr.normal(jr.key(1), (4,)).astype(jnp.float32),
    "half": jr.normal(jr.key(2), (4, 8)).astype(jnp.bfloat16),
}
X = jax.tree.map(lambda u: u[1] - u[2], ROWS)
C = jnp.array([1.0, -2.0, 0.5, 3.0])


def flat(tree):
    """Leaves side by side after their first axis, as float64."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def flat_one(tree):
    return flat(jax.tree.map(lambda x: x[None], tree))[0]


@placed
def test_products_with_stacked_rows_equal_the_dense_ones(place):
    # oracle: dense NumPy
    rows, x, U = place(ROWS, 1), place(X, 0), flat(ROWS)
    with place.context():
        assert_allclose(jax.jit(project)(rows, x), U @ flat_one(X), rtol=1e-5)
        assert_allclose(jax.jit(gram)(rows), U @ U.T, rtol=1e-5)
        assert_allclose(jax.jit(dot)(x, x), flat_one(X) @ flat_one(X), rtol=1e-5)
        combined = jax.jit(combine)(C, rows)
    assert jax.tree.map(jnp.result_type, combined) == jax.tree.map(jnp.result_type, X)
    assert_allclose(flat_one(combined), C @ U, rtol=2**-8, atol=2**-8)
    want = np.einsum("r,rab->ab", C, ROWS["matrix"])
    assert_allclose(combined["matrix"], want, rtol=1e-12)


@placed
def test_sharded_leaves_stay_where_they_are(place):
    # oracle: identity
    rows, x = place(ROWS, 1), place(X, 0)
    with place.context():
        combined = jax.jit(combine)(C, rows)
    for leaf, like in zip(*map(jax.tree.leaves, (combined, x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)


@placed
def test_rows_of_zeros_are_shaped_and_split_like_the_vector(place):
    # oracle: identity
    rows, x = place(ROWS, 1), place(X, 0)
    with place.context():
        zeros = jax.jit(lambda x: zero_rows(4, x))(x)
    for leaf, like in zip(*map(jax.tree.leaves, (zeros, rows)), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert not jnp.any(leaf)
        if place.is_explicit:
            assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)


def test_sums_of_narrow_leaves_do_not_stall():
    # oracle: closed form; bfloat16 counts to 256
    ones = jnp.ones((1, 5000), jnp.bfloat16)
    assert dot(ones, ones) == 5000
    assert_array_equal(project(ones, ones[0]), [5000])
    assert_array_equal(gram(ones), [[5000]])
    assert dot(ones, ones).dtype == jnp.float32


def test_trees_without_leaves_have_products():
    # oracle: identity
    assert dot({}, {}) == 0
    assert project({}, {}).shape == (0,)
    assert gram({"a": None}).shape == (0, 0)
    assert num_rows({"a": None}) == 0


@pytest.mark.parametrize("r", [1, 2, 20])
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 3e-5)])
def test_long_rows_are_added_up_to_the_digits_of_float32(r, dtype, rtol, rng):
    """Oracle: float64. One by one, 2²¹ positive terms would be off by 2e-6 to 8e-4."""
    x = rng.uniform(0.5, 1.5, 1 << 21)
    rows = jnp.asarray(np.stack([x] * r), dtype)
    x = jnp.asarray(x, dtype)
    want = np.sum(np.asarray(x, np.float64) ** 2)
    for product in (project, lambda u, x: project_blocks(u, x, r)):
        found = np.asarray(product({"w": rows}, {"w": x}), np.float64)
        np.testing.assert_allclose(found / want, 1, rtol=rtol)


def test_derivatives_of_long_dots_are_exact():
    """Oracle: closed form, f(s) = s² Σ x, forward and reverse."""
    x = jnp.ones(1 << 20, jnp.float32)

    def f(s):
        return jnp.sum(project(jnp.stack([s * x, 2 * s * x]), s * x))

    s = jnp.float32(2.0)
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert_allclose(jacobian(f)(s), 6 * x.size * s, rtol=1e-6)
