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


TO_TORCH = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}
TORCH_AXES = {2: (1,), 3: (2,), 4: (2, 3)}


@pytest.mark.parametrize("signed", [False, True], ids=["modulus", "signed"])
@pytest.mark.parametrize("shape", [(4, 5), (3, 2, 8), (3, 5, 2, 8), (5,)], ids=str)
def test_averages_do_not_depend_on_the_layout(shape, signed, rng):
    """Oracle: the leaf with outputs last; with outputs first, the axes are named."""
    h = jnp.asarray(rng.standard_normal(shape))
    order = TO_TORCH.get(h.ndim, (0,))
    for found, expected in [
        (
            ok.optim.average_rows(h.transpose(order), axes=TORCH_AXES, signed=signed),
            ok.optim.average_rows(h, signed=signed),
        ),
        (
            ok.optim.average_conv_kernels(
                h.transpose(order), axes=(2, 3), signed=signed
            ),
            ok.optim.average_conv_kernels(h, signed=signed),
        ),
    ]:
        assert_allclose(found, expected.transpose(order), rtol=1e-12)


EQUINOX = [(16, 3, 3, 3), (6, 1, 5, 5), (3, 8, 3, 3), (3, 1, 5, 5), (64, 64, 1, 1)]
EQUINOX += [(16, 3, 1, 7), (1, 16, 3, 3)]


@pytest.mark.parametrize("shape", EQUINOX, ids=str)
def test_kernels_with_positions_last_are_refused_until_axes_are_named(shape):
    """Oracle: the message; their mean over axes 0 and 1 would be one of channels."""
    leaf, rows = jnp.ones(shape), ok.optim.average_rows
    with pytest.raises(ValueError, match=r"`ok.optim.average_conv_k.*axes=\(2, 3\)`"):
        ok.optim.average_conv_kernels(leaf)
    with pytest.raises(ValueError, match=r"`ok.optim.average_rows`.*4: \(2, 3\)\}`"):
        rows(leaf)
    with pytest.raises(ValueError, match="look like positions"):
        ok.optim.adahessian(0.1, average=rows).init({"w": leaf})
    for axes in ((2, 3), (0, 1)):
        assert ok.optim.average_conv_kernels(leaf, axes=axes).shape == shape


FLAX = [(3, 3, 3, 16), (7, 7, 3, 64), (1, 1, 64, 64), (5, 5, 1, 6), (3, 3, 1, 32)]
FLAX += [(3, 1, 8, 8), (512, 8, 64), (8, 64, 512), (5, 1, 16), (784, 10), (0, 2, 1, 1)]


@pytest.mark.parametrize("shape", FLAX, ids=str)
def test_layers_of_flax_are_not_refused(shape):
    """Oracle: identity of shapes, of convolutions, attention and matrices."""
    for average in (ok.optim.average_conv_kernels, ok.optim.average_rows):
        assert average(jnp.ones(shape)).shape == shape


def test_blocks_of_no_entries_are_refused():
    """Oracle: the message."""
    with pytest.raises(
        ValueError, match=r"`ok.optim.average_blocks`.*size >= 1, got 0"
    ):
        ok.optim.average_blocks(0)
