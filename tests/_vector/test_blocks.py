"""Products with narrow rows, a block of them in float32 at a time."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from precision import assert_allclose

from optkit._vector import combine_blocks, project_blocks

R, N = 7, 1 << 17  # four blocks of two rows, the last of which overlap


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("is_about", [False, True])
def test_products_by_blocks_equal_the_dense_ones(dtype, is_about, key):
    """Oracle: float64, with all rows near the one that is subtracted."""
    keys = jr.split(key, 3)
    w = jr.normal(keys[0], (N,)).astype(dtype)
    u = w[None] + (2**-6 * jr.normal(keys[1], (R, N))).astype(dtype)
    x = jr.normal(keys[2], (N,)).astype(jnp.float32)
    c = jnp.linspace(-1.0, 1.0, R, dtype=jnp.float32)
    about = {"w": w} if is_about else None
    dense = np.asarray(u, np.float64)
    found = jax.jit(lambda u, x: project_blocks({"w": u}, {"w": x}, R, about))(u, x)
    want = dense @ np.asarray(x, np.float64)
    assert found.dtype == jnp.float32
    assert_allclose(found, want, atol=1e-5 * np.linalg.norm(want))
    found = jax.jit(lambda c, u: combine_blocks(c, {"w": u}, about))(c, u)["w"]
    want = np.asarray(c, np.float64) @ dense
    assert found.dtype == jnp.float32
    assert_allclose(found, want, atol=1e-5 * np.max(np.abs(want)))
