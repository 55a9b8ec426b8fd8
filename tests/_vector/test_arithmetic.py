"""Arithmetic of trees: wide sums, one rounding, no derivatives of constants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from precision import assert_allclose

from optkit import _vector as v

X = {"half": jnp.array([1.0, -2.0], jnp.bfloat16), "one": jnp.float32(3), "none": None}
Y = {"half": jnp.array([0.5, 4.0], jnp.bfloat16), "one": jnp.float32(-1), "none": None}


def test_sums_products_and_zeros_keep_structure_and_dtypes():
    """Oracle: closed form; all numbers are exact in bfloat16."""
    for found, half, one in (
        (v.add(X, Y), [1.5, 2.0], 2.0),
        (v.subtract(X, Y), [0.5, -6.0], 4.0),
        (v.multiply(X, Y), [0.5, -8.0], -3.0),
        (v.zeros_like(X), [0.0, 0.0], 0.0),
        (v.scale(2.0, X), [2.0, -4.0], 6.0),
        (v.axpy(jnp.float32(2), X, Y), [2.5, 0.0], 5.0),
        (v.where(jnp.bool_(False), X, Y), [0.5, 4.0], -1.0),
    ):
        assert jax.tree.structure(found) == jax.tree.structure(X)
        assert (found["half"].dtype, found["one"].dtype) == (jnp.bfloat16, jnp.float32)
        assert_array_equal(found["half"].astype(float), half)
        assert found["one"] == one


def test_a_multiple_and_a_sum_are_rounded_once():
    """Oracle: closed form. Rounding 1/3 to bfloat16 first would be off by 2⁻⁹ more."""
    third, y = 1 / 3, jnp.bfloat16(-0.5)
    assert v.axpy(third, jnp.bfloat16(1.5), y) == jnp.bfloat16(third * 1.5 - 0.5)
    assert v.scale(third, jnp.bfloat16(1.5)) == jnp.bfloat16(0.5)


def test_casts_follow_the_other_tree():
    """Oracle: identity."""
    wide = v.widen(X)
    assert wide["half"].dtype == jnp.float32
    assert v.axpy(1, X, wide)["half"].dtype == jnp.float32
    assert v.cast_like(wide, X)["half"].dtype == jnp.bfloat16
    like = jax.eval_shape(lambda: wide)
    assert v.cast_like(X, like)["half"].dtype == jnp.float32


def test_norms_are_over_all_leaves():
    """Oracle: closed form, √(1 + 4 + 9)."""
    assert_allclose(v.norm(X), np.sqrt(14), rtol=1e-6)


@pytest.mark.parametrize("x", [2.0, jnp.float32(2)])
def test_constants_have_no_derivative(x):
    """Oracle: closed form, d/dx (c x) = c."""

    def f(x):
        kept = v.constant({"x": x, "count": 3, "none": None})
        assert kept["count"] == 3
        return kept["x"] * x

    assert jax.grad(f)(x) == 2.0


def test_strong_copies_have_strong_dtypes():
    """Oracle: identity."""
    assert not v.strong(jnp.asarray(1.0)).weak_type


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_one_entry_that_is_not_finite_is_seen(bad):
    """Oracle: identity. Integers and trees without leaves are finite."""
    spoilt = X | {"half": X["half"].at[1].set(bad)}
    assert v.all_finite(X)
    assert v.all_finite({"count": jnp.arange(3)})
    assert v.all_finite({})
    assert not v.all_finite(spoilt)
    assert not v.all_finite(X, spoilt)
