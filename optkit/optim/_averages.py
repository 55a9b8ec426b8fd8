"""Averages of a Hessian diagonal over parts of a leaf, which reduce the probes' noise.

Each takes one leaf, for `ok.optim.adahessian(average=...)`, and returns an array of its
shape. Like the authors' code, each averages |h|, so curvatures of both signs add up.
With `signed=True`, as in the paper, it averages h, so they cancel.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import Check

Average: TypeAlias = Callable[[Array], Array]
"""A function from a leaf of the diagonal to an array of its shape."""

Leaf = Float[Array, "..."]


def average_conv_kernels(diag: Leaf, *, signed: bool = False) -> Leaf:
    """Returns averages over the kernel positions of a 2-D convolution, not channels.

    This follows `image_classification/optim_adahessian.py` of the authors' code. A leaf
    with four axes is a kernel in JAX's layout (height, width, inputs, outputs): the
    mean is over axes 0 and 1. Other leaves are returned unchanged.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> kernel = jnp.array([-1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> for signed in (False, True):
        ...     print(ok.optim.average_conv_kernels(kernel, signed=signed).ravel())
        [2. 2.]
        [1. 1.]
    """
    return _mean(diag, (0, 1), signed) if diag.ndim == 4 else diag


def average_rows(diag: Leaf, *, signed: bool = False) -> Leaf:
    """Returns averages over all inputs of one output, a row in the authors' layout.

    This follows `instruction/adahessian.py` of the authors' code. Their weights are
    (outputs, inputs), JAX's are (inputs, outputs), so their row is our column. The mean
    is over axis 0 of a leaf with two or three axes, and over axes 0 and 1 of a kernel
    with four. Other leaves are returned unchanged.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.optim.average_rows(jnp.array([[1.0, 2.0], [-3.0, 4.0]])))
        [[2. 3.]
         [2. 3.]]
    """
    if diag.ndim == 4:
        return average_conv_kernels(diag, signed=signed)
    return _mean(diag, (0,), signed) if diag.ndim in {2, 3} else diag


def average_blocks(size: int, *, signed: bool = False) -> Average:
    """Returns an average over blocks of neighbours along the flattened last axis.

    This follows `transformer/fairseq/optim/adahessian.py` of the authors' code, which
    uses a `size` of 32 for transformers. A leaf with two or more axes is split,
    row-major, into blocks of `size` entries; vectors are returned unchanged. In JAX's
    layout neighbours share an input, in the authors' an output: where that matters,
    transpose the leaf in a function of your own.

    Raises:
        ValueError: if `size` is not an integer >= 1, or does not divide a leaf's size.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.optim.average_blocks(2)(jnp.array([[1.0, -3.0, 5.0, 7.0]])))
        [[2. 2. 6. 6.]]
    """
    check = Check("ok.optim.average_blocks")
    check.count(size=size)

    def average(diag: Leaf) -> Leaf:
        if diag.ndim < 2 or not diag.size:
            return diag
        text = f"the {diag.size} entries of shape {diag.shape}, got {size}."
        check.that(diag.size % size == 0, f"needs a size that divides {text}")
        whole = diag.shape[-1] % size == 0  # each block lies in one row
        blocks = diag.reshape(*(diag.shape[:-1] if whole else ()), -1, size)
        return _mean(blocks, (-1,), signed).reshape(diag.shape)

    return average


def _mean(diag: Array, axes: tuple[int, ...], signed: bool) -> Array:
    h = diag if signed else jnp.abs(diag)
    return jnp.broadcast_to(jnp.mean(h, axes, keepdims=True), diag.shape)
