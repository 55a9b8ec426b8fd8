"""Scaling of vectors, at the ends of the range of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from precision import FLOAT, assert_allclose

from optkit._vector import normalised, over_peak, relative_norm, safe_norm


@pytest.mark.parametrize("size", [3e38, 1e38, 6.0, 1e-30, 1.2e-38])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_power_of_two_is_divided_out_exactly(size, wrap):
    """Oracle: NumPy. A compiler's reciprocal of 1e38 is flushed to zero."""
    vector = np.float32(size) * np.array([1.0, -0.5, 0.25], np.float32)
    b, scale = wrap(over_peak)(jnp.asarray(vector))
    assert 1 <= np.max(np.abs(b)) < 4
    assert np.log2(np.float64(scale)) % 1 == 0
    wide = np.float64(vector)
    normal = np.abs(wide) > 2e-38
    assert_array_equal((np.float64(b) * np.float64(scale))[normal], wide[normal])


def test_leaves_keep_their_dtypes_but_narrow_ones_widen():
    """Oracle: float32 or wider, leaf by leaf."""
    dtypes = [jnp.bfloat16, jnp.float32, FLOAT]
    tree, _ = over_peak([jnp.full(2, 3.0, dtype) for dtype in dtypes])
    assert [leaf.dtype for leaf in tree] == [jnp.float32, jnp.float32, FLOAT]
    assert_allclose(tree, np.full((3, 2), 1.5), rtol=1e-6)


@pytest.mark.parametrize("size", [1e38, 1e-30])
def test_normalised_vectors_have_norm_one_at_any_size(size):
    """Oracle: NumPy in float64."""
    vector = jnp.asarray([size, -size, size], jnp.float32)
    b, norm = jax.jit(normalised)(vector)
    assert_allclose(b, np.array([1, -1, 1]) / np.sqrt(3), rtol=1e-6)
    assert_allclose(norm, np.linalg.norm(np.float64(vector)), rtol=1e-6)


@pytest.mark.parametrize("size", [1e38, 1e20, 1e-25])
def test_a_norm_that_is_known_at_compile_time_does_not_overflow(size):
    """Oracle: NumPy in float64. XLA would reorder the products of a constant."""
    vector = np.full(3, size, np.float32)
    norms = jax.jit(lambda: (normalised(vector)[1], safe_norm(vector)))()
    assert_allclose(norms, np.linalg.norm(np.float64(vector)), rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (1e37, 3e38, 1 / 30),  # |y| overflows
        (1e-30, 1e-28, 1e-2),  # squares underflow
        (3e38, 1e-38, np.inf),
        (1.0, 0.0, 10.0),  # |x|
        (0.0, 0.0, 0.0),
        (1.0, np.inf, np.inf),
        (np.inf, np.inf, np.inf),
        (1.0, np.nan, np.inf),
        (np.nan, 1.0, np.inf),
    ],
)
def test_a_relative_norm_passes_no_comparison_unless_all_is_finite(x, y, expected):
    """Oracle: closed form, for 100 equal entries; infinity where none exists."""
    x, y = (jnp.full(100, value, jnp.float32) for value in (x, y))
    assert_allclose(jax.jit(relative_norm)(x, y), expected, rtol=1e-6)
