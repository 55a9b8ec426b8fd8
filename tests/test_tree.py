"""Stacked rows and random signs, on trees of any leaves and any devices."""

import contextlib

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from numpy.testing import assert_array_equal
from precision import FLOAT, assert_allclose

from optkit import _tree

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


class Placed:
    """How leaves lie: on one device, or an axis of length 8 split over eight."""

    def __init__(self, axis_type):
        self.mesh = axis_type and jax.make_mesh((8,), ("d",), axis_types=(axis_type,))

    def __call__(self, tree, axis):
        def put(x):
            is_split = x.ndim > axis and x.shape[axis] == 8
            axes = [None] * axis + ["d"] if is_split else []
            return jax.device_put(x, NamedSharding(self.mesh, PartitionSpec(*axes)))

        return jax.tree.map(put, tree) if self.mesh else tree

    def context(self):
        return jax.set_mesh(self.mesh) if self.mesh else contextlib.nullcontext()


placed = pytest.mark.parametrize(
    "place",
    [Placed(None), Placed(AxisType.Auto), Placed(AxisType.Explicit)],
    ids=["whole", "auto", "explicit"],
)


@placed
def test_products_with_stacked_rows_equal_the_dense_ones(place):
    # oracle: dense NumPy
    rows, x, U = place(ROWS, 1), place(X, 0), flat(ROWS)
    with place.context():
        assert_allclose(jax.jit(_tree.project)(rows, x), U @ flat_one(X), rtol=1e-5)
        assert_allclose(jax.jit(_tree.gram)(rows), U @ U.T, rtol=1e-5)
        assert_allclose(jax.jit(_tree.dot)(x, x), flat_one(X) @ flat_one(X), rtol=1e-5)
        combined = jax.jit(_tree.combine)(C, rows)
    assert jax.tree.map(jnp.result_type, combined) == jax.tree.map(jnp.result_type, X)
    assert_allclose(flat_one(combined), C @ U, rtol=2**-8, atol=2**-8)
    want = np.einsum("r,rab->ab", C, ROWS["matrix"])
    assert_allclose(combined["matrix"], want, rtol=1e-12)


@placed
def test_sharded_leaves_stay_where_they_are(place):
    # oracle: identity
    rows, x = place(ROWS, 1), place(X, 0)
    with place.context():
        combined = jax.jit(_tree.combine)(C, rows)
    for leaf, like in zip(*map(jax.tree.leaves, (combined, x)), strict=True):
        assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)


def test_sums_of_narrow_leaves_do_not_stall():
    # oracle: closed form; bfloat16 counts to 256
    ones = jnp.ones((1, 5000), jnp.bfloat16)
    assert _tree.dot(ones, ones) == 5000
    assert_array_equal(_tree.project(ones, ones[0]), [5000])
    assert_array_equal(_tree.gram(ones), [[5000]])
    assert _tree.dot(ones, ones).dtype == jnp.float32


def test_trees_without_leaves_have_products():
    # oracle: identity
    assert _tree.dot({}, {}) == 0
    assert _tree.project({}, {}).shape == (0,)
    assert _tree.gram({"a": None}).shape == (0, 0)
    assert _tree.signs(jr.key(0), {"a": None}) == {"a": None}
    assert _tree.to_vector({}).shape == (0,)


def test_a_vector_goes_to_a_tree_and_back():
    # oracle: identity
    vector = _tree.to_vector(X)
    assert vector.dtype == FLOAT
    assert_array_equal(vector, flat_one(X))
    back = _tree.from_vector(vector, X)
    assert jax.tree.structure(back) == jax.tree.structure(X)
    for leaf, like in zip(*map(jax.tree.leaves, (back, X)), strict=True):
        assert leaf.dtype == like.dtype
        assert_array_equal(leaf, like)


def test_signs_are_signs_in_the_shape_and_dtype_of_each_leaf(key):
    # oracle: identity
    tree = X | {"empty": jnp.zeros((3, 0)), "shape": jax.ShapeDtypeStruct((33,), "f4")}
    z = _tree.signs(key, tree)
    assert jax.tree.structure(z) == jax.tree.structure(tree)
    for leaf, like in zip(*map(jax.tree.leaves, (z, tree)), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert_array_equal(jnp.abs(leaf), jnp.ones_like(leaf))


def test_signs_are_balanced_and_uncorrelated(key):
    # oracle: closed form, each mean within 4 standard errors of zero
    n = 100_000
    z = _tree.signs(key, {"a": jnp.zeros(n), "b": jnp.zeros((n // 100, 100))})
    a, b = z["a"], z["b"].ravel()
    other = _tree.signs(jr.split(key)[0], jnp.zeros(n))
    for product in (a, b, a * b, a * other, *(a * jnp.roll(a, k) for k in (1, 31, 32))):
        assert abs(jnp.mean(product)) < 4 / n**0.5
    by_bit = a.reshape(-1, 32).mean(0)
    assert jnp.max(jnp.abs(by_bit)) < 4 / (n / 32) ** 0.5


@pytest.mark.parametrize("num_rows", [1, 2, 20])
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-6), (jnp.bfloat16, 3e-5)])
def test_long_rows_are_added_up_to_the_digits_of_float32(num_rows, dtype, rtol, rng):
    """Oracle: float64. One by one, 2²¹ positive terms would be off by 2e-6 to 8e-4."""
    x = rng.uniform(0.5, 1.5, 1 << 21)
    rows = jnp.asarray(np.stack([x] * num_rows), dtype)
    x = jnp.asarray(x, dtype)
    want = np.sum(np.asarray(x, np.float64) ** 2)
    for project in (_tree.project, lambda u, x: _tree.project_blocks(u, x, num_rows)):
        found = np.asarray(project({"w": rows}, {"w": x}), np.float64)
        np.testing.assert_allclose(found / want, 1, rtol=rtol)


def test_derivatives_of_long_dots_are_exact():
    """Oracle: closed form, f(s) = s² Σ x, forward and reverse."""
    x = jnp.ones(1 << 20, jnp.float32)

    def f(s):
        return jnp.sum(_tree.project(jnp.stack([s * x, 2 * s * x]), s * x))

    s = jnp.float32(2.0)
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert_allclose(jacobian(f)(s), 6 * x.size * s, rtol=1e-6)


@placed
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_signs_do_not_depend_on_the_devices(key, place, wrap):
    # oracle: identity
    tree = {"a": jnp.zeros((8, 5), jnp.float32), "b": jnp.zeros((), jnp.bfloat16)}
    want = _tree.signs(key, tree)
    tree = place(tree, 0)
    with place.context():
        got = wrap(_tree.signs)(key, tree)
    for z, leaf, like in zip(*map(jax.tree.leaves, (got, want, tree)), strict=True):
        assert_array_equal(z, leaf)
        if place.mesh and AxisType.Explicit in place.mesh.axis_types:
            assert jax.typeof(z).sharding == jax.typeof(like).sharding


def test_signs_accept_old_keys():
    # oracle: identity
    new, old = jr.key(3), jr.PRNGKey(3)
    x = jnp.zeros(40)
    assert_array_equal(_tree.signs(old, x), _tree.signs(new, x))
