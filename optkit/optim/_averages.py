"""Averages of a Hessian diagonal over parts of a leaf, which reduce the probes' noise.

Each takes one leaf, for `ok.optim.adahessian(average=...)`, and returns an array of its
shape. Like the authors' code, each averages |h|, so curvatures of both signs add up.
With `signed=True`, as in the paper, it averages h, so they cancel.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._check import Check

Average: TypeAlias = Callable[[Array], Array]
"""A function from a leaf of the diagonal to an array of its shape."""

Leaf = Float[Array, "..."]

_WIDTHS = {1, 3, 5, 7, 9, 11}  # of kernels


def average_conv_kernels(
    diag: Leaf, *, axes: tuple[int, ...] | None = None, signed: bool = False
) -> Leaf:
    """Returns averages over the kernel positions of a 2-D convolution, not channels.

    This follows `image_classification/optim_adahessian.py` of the authors' code. A leaf
    with four axes is a kernel, by default in the layout of Flax and Haiku (height,
    width, inputs, outputs). Other leaves are returned unchanged. In Equinox and
    PyTorch, the layout is (outputs, inputs, height, width): pass `axes=(2, 3)`, by
    `functools.partial`.

    Args:
        diag: one leaf.
        axes: the kernel positions. Default: (0, 1).
        signed: whether to average h, not |h|.

    Raises:
        ValueError: without `axes`, if the last two axes look like kernel positions.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> kernel = jnp.array([-1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> for signed in (False, True):
        ...     average = ok.optim.average_conv_kernels(
        ...         kernel, axes=(0, 1), signed=signed
        ...     )
        ...     print(average.ravel())
        [2. 2.]
        [1. 1.]
    """
    check = Check("ok.optim.average_conv_kernels")
    return _mean_by_ndim(check, diag, None if axes is None else {4: axes}, signed)


def average_rows(
    diag: Leaf,
    *,
    axes: Mapping[int, tuple[int, ...]] | None = None,
    signed: bool = False,
) -> Leaf:
    """Returns averages over the inputs of a matrix, or the positions of a kernel.

    This follows `instruction/adahessian.py` of the authors' code. Their weights are
    (outputs, inputs), those of Flax and Haiku (inputs, outputs), so their row is a
    column here. The mean is over axis 0 of a leaf with two or three axes, and over axes
    0 and 1 of one with four. So in a matrix it is over all inputs of an output; in a
    kernel, only over the positions, for each pair of input and output. Other leaves are
    returned unchanged.

    Args:
        diag: one leaf.
        axes: the axes to average, by the number of axes of the leaf. Default: {2: (0,),
            3: (0,), 4: (0, 1)}. In Equinox, as in PyTorch, outputs come first:
            `partial(average_rows, axes={2: (1,), 3: (2,), 4: (2, 3)})`.
        signed: whether to average h, not |h|.

    Raises:
        ValueError: without `axes`, if the last axes look like kernel positions.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> print(ok.optim.average_rows(jnp.array([[1.0, 2.0], [-3.0, 4.0]])))
        [[2. 3.]
         [2. 3.]]
    """
    check = Check("ok.optim.average_rows")
    check.optional.instance(Mapping, "a dict such as {{2: (1,)}}", axes=axes)
    return _mean_by_ndim(check, diag, axes, signed, matrices=True)


def average_blocks(size: int, *, signed: bool = False) -> Average:
    """Returns an average over blocks of neighbours along the flattened last axis.

    This follows `transformer/fairseq/optim/adahessian.py` of the authors' code, which
    uses a `size` of 32 for transformers. A leaf with two or more axes is split,
    row-major, into blocks of `size` entries; vectors are returned unchanged. Where
    outputs come last, as in Flax, neighbours share an input; in Equinox and the
    authors' code, they share an output. Where that matters, transpose the leaf in a
    function of your own.

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


def _mean_by_ndim(
    check: Check,
    diag: Leaf,
    axes: Mapping[int, tuple[int, ...]] | None,
    signed: bool,
    *,
    matrices: bool = False,
) -> Leaf:
    """The mean over the axes for this number of axes; the leaf if there are none."""
    if axes is None:
        axes = {2: (0,), 3: (0,), 4: (0, 1)} if matrices else {4: (0, 1)}
        text = (
            "needs kernels with positions first, such as (height, width, inputs, "
            f"outputs); got shape {diag.shape}, whose last axes look like positions. "
            "Name the axes to average: for (outputs, inputs, height, width), pass "
        )
        text += (
            "`axes={2: (1,), 3: (2,), 4: (2, 3)}`." if matrices else "`axes=(2, 3)`."
        )
        is_reversed = (
            diag.ndim in axes and diag.size and _has_positions_last(diag.shape)
        )
        check.that(not is_reversed, text)
    return _mean(diag, axes[diag.ndim], signed) if diag.ndim in axes else diag


def _has_positions_last(shape: tuple[int, ...]) -> bool:
    """Whether these axes look like (outputs, inputs, positions)."""
    *_, last = shape
    if len(shape) == 3:
        return last in _WIDTHS and shape[0] > last
    if len(shape) != 4:
        return False
    (a, b), (c, d) = shape[:2], shape[2:]
    return max(a, b) > max(c, d) or (a != b and c == d and c in _WIDTHS)


def _mean(diag: Array, axes: tuple[int, ...], signed: bool) -> Array:
    h = diag if signed else jnp.abs(diag)
    return jnp.broadcast_to(jnp.mean(h, axes, keepdims=True), diag.shape)
