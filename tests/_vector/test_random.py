"""Random signs, on trees of any leaves and any devices."""

import jax
import jax.numpy as jnp
import jax.random as jr
import pytest
from numpy.testing import assert_array_equal
from placed import placed

from optkit._types import wide_dtype
from optkit._vector import normals, signs

TREE = {
    "matrix": jnp.zeros((8, 3)),
    "none": None,
    "scalar": jnp.zeros((), jnp.float32),
    "half": jnp.zeros(8, jnp.bfloat16),
    "empty": jnp.zeros((3, 0)),
    "shape": jax.ShapeDtypeStruct((33,), "f4"),
}


def test_signs_are_signs_in_the_shape_and_dtype_of_each_leaf(key):
    # oracle: identity
    z = signs(key, TREE)
    assert jax.tree.structure(z) == jax.tree.structure(TREE)
    for leaf, like in zip(*map(jax.tree.leaves, (z, TREE)), strict=True):
        assert (leaf.shape, leaf.dtype) == (like.shape, like.dtype)
        assert_array_equal(jnp.abs(leaf), jnp.ones_like(leaf))


def test_signs_are_balanced_and_uncorrelated(key):
    # oracle: closed form, each mean within 4 standard errors of zero
    n = 100_000
    z = signs(key, {"a": jnp.zeros(n), "b": jnp.zeros((n // 100, 100))})
    a, b = z["a"], z["b"].ravel()
    other = signs(jr.split(key)[0], jnp.zeros(n))
    for product in (a, b, a * b, a * other, *(a * jnp.roll(a, k) for k in (1, 31, 32))):
        assert abs(jnp.mean(product)) < 4 / n**0.5
    by_bit = a.reshape(-1, 32).mean(0)
    assert jnp.max(jnp.abs(by_bit)) < 4 / (n / 32) ** 0.5


@placed
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_signs_do_not_depend_on_the_devices(key, place, wrap):
    # oracle: identity
    tree = {"a": jnp.zeros((8, 5), jnp.float32), "b": jnp.zeros((), jnp.bfloat16)}
    want = signs(key, tree)
    tree = place(tree, 0)
    with place.context():
        got = wrap(signs)(key, tree)
    for z, leaf, like in zip(*map(jax.tree.leaves, (got, want, tree)), strict=True):
        assert_array_equal(z, leaf)
        if place.is_explicit:
            assert jax.typeof(z).sharding == jax.typeof(like).sharding


def test_signs_accept_old_keys():
    # oracle: identity
    new, old = jr.key(3), jr.PRNGKey(3)
    x = jnp.zeros(40)
    assert_array_equal(signs(old, x), signs(new, x))


def test_normals_are_wide_and_may_have_a_leading_axis(key):
    # oracle: identity
    for num_rows, rows in ((None, ()), (5, (5,))):
        z = normals(key, TREE, num_rows)
        for leaf, like in zip(*map(jax.tree.leaves, (z, TREE)), strict=True):
            assert leaf.shape == (*rows, *like.shape)
            assert leaf.dtype == wide_dtype(like)


def test_a_tree_without_leaves_has_no_signs():
    # oracle: identity
    assert signs(jr.key(0), {"a": None}) == {"a": None}
