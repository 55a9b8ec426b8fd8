"""Averages of a leaf of the diagonal; `test_adahessian.py` takes steps with them."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import adahessian_blocks
from precision import assert_allclose

import optkit as ok


@pytest.mark.parametrize("signed", [False, True], ids=["modulus", "signed"])
@pytest.mark.parametrize(("shape", "size"), [((4, 6), 3), ((4, 6), 8), ((2, 3, 4), 6)])
def test_blocks_are_of_the_flattened_last_axis(shape, size, signed, rng):
    """Oracle: the authors' loop on the flattened leaf; a vector stays."""
    h = rng.standard_normal(shape)
    found = ok.optim.average_blocks(size, signed=signed)(jnp.asarray(h))
    expected = adahessian_blocks(h if signed else np.abs(h), size)
    assert_allclose(found, expected, rtol=1e-12)
    vector = jnp.arange(5.0)
    assert_allclose(ok.optim.average_blocks(size)(vector), vector)


def test_averages_of_conv_kernels_never_mix_channels(rng):
    """Oracle: identity; the fault is to average the last two axes of HWIO."""
    per_channel = rng.standard_normal((8, 16))
    h = jnp.broadcast_to(per_channel, (3, 3, 8, 16))
    assert_allclose(ok.optim.average_conv_kernels(h), np.abs(h), rtol=1e-12)
    assert_allclose(ok.optim.average_conv_kernels(h, signed=True), h, rtol=1e-12)
    attention = jnp.asarray(rng.standard_normal((6, 2, 3)))
    assert ok.optim.average_conv_kernels(attention) is attention


def test_blocks_of_no_entries_are_refused():
    """Oracle: the message."""
    with pytest.raises(
        ValueError, match=r"`ok.optim.average_blocks`.*size >= 1, got 0"
    ):
        ok.optim.average_blocks(0)
