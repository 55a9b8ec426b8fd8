"""Averages of a Hessian diagonal over parts of a leaf, against the noise of probes.

Each is for one leaf, to be given to `ok.optim.adahessian(average=...)`. The authors' code
averages |h|, so that curvatures of both signs add; their paper h, so that they cancel.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import Check

Average: TypeAlias = Callable[[Array], Array]
"""From a leaf of the diagonal to an array of its shape."""

Leaf = Float[Array, "..."]


def average_conv_kernels(diag: Leaf, *, signed: bool = False) -> Leaf:
    """Averages a 2-D convolution's diagonal over kernel positions, not channels.

    A leaf with four axes is a kernel in JAX's layout, height, width, inputs, outputs:
    the mean is over axes 0 and 1. Other leaves come back as they are.

    Args:
        diag: a leaf of the Hessian diagonal.
        signed: whether the mean is of h, as in the paper, or of |h|, as in the code.

    Returns:
        An array of the same shape.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> kernel = jnp.array([-1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> print(ok.optim.average_conv_kernels(kernel).ravel())
        [2. 2.]
        >>> print(ok.optim.average_conv_kernels(kernel, signed=True).ravel())
        [1. 1.]

    Reference:
        `image_classification/optim_adahessian.py` of the authors' code.
    """
    return _mean(diag, (0, 1), signed) if diag.ndim == 4 else diag


def average_rows(diag: Leaf, *, signed: bool = False) -> Leaf:
    """Averages over all that feeds one output: a row, where weights are stored so.

    The authors' weights are (outputs, inputs); JAX's are (inputs, outputs), so that
    their row is our column. The mean is over axis 0 of a leaf with two or three axes,
    axes 0 and 1 of a convolution kernel with four. Others come back as they are.

    Args:
        diag: a leaf of the Hessian diagonal.
        signed: whether the mean is of h, as in the paper, or of |h|, as in the code.

    Returns:
        An array of the same shape.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.optim.average_rows(jnp.array([[1.0, 2.0], [-3.0, 4.0]])))
        [[2. 3.]
         [2. 3.]]

    Reference:
        `instruction/adahessian.py` of the authors' code.
    """
    if diag.ndim == 4:
        return average_conv_kernels(diag, signed=signed)
    return _mean(diag, (0,), signed) if diag.ndim in {2, 3} else diag


def average_blocks(size: int, *, signed: bool = False) -> Average:
    """Makes an average over blocks of neighbours along the flattened last axis.

    A leaf with two or more axes is cut, row-major, into blocks of `size` entries.
    In JAX's layout neighbours share an input, in the authors' an output: transpose the
    leaf in a function of your own where that matters. Vectors come back as they are.

    Args:
        size: entries in a block; the authors use 32 for transformers.
        signed: whether the mean is of h, as in the paper, or of |h|, as in the code.

    Returns:
        A function of a leaf, which raises a ValueError if `size` does not divide
        the number of its entries.

    Raises:
        ValueError: for a size that is not an integer >= 1.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.optim.average_blocks(2)(jnp.array([[1.0, -3.0, 5.0, 7.0]])))
        [[2. 2. 6. 6.]]

    Reference:
        `transformer/fairseq/optim/adahessian.py` of the authors' code.
    """
    check = Check("ok.optim.average_blocks")
    check.count(size=size)

    def average(diag: Leaf) -> Leaf:
        if diag.ndim < 2 or not diag.size:
            return diag
        text = f"needs a size that divides {diag.size}, of shape {diag.shape}: {size}."
        check.that(diag.size % size == 0, text)
        whole = diag.shape[-1] % size == 0  # blocks end where the last axis does
        blocks = diag.reshape(*(diag.shape[:-1] if whole else ()), -1, size)
        return _mean(blocks, (-1,), signed).reshape(diag.shape)

    return average


def _mean(diag: Array, axes: tuple[int, ...], signed: bool) -> Array:
    h = diag if signed else jnp.abs(diag)
    return jnp.broadcast_to(jnp.mean(h, axes, keepdims=True), diag.shape)
