"""Low-rank curvature C = UᵀU of stacked rows, such as per-example gradients."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import Params, wide_dtype
from .._vector import combine, num_rows, project, scale, structure_of
from .base import AbstractCurvature


class LowRank(AbstractCurvature):
    """C = UᵀU, with the r rows of U stacked: a pytree with a leading axis r.

    The rows include the weights: the mean of m outer products g gᵀ has rows g / √m. A
    product reads the rows twice. C is positive semidefinite, of rank at most r.

    Args:
        rows: real leaves (r, *leaf shape), with the same r for all.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
        >>> C.mv(jnp.array([1.0, 0.0]))
        Array([1., 2.], dtype=float32)
        >>> C.diagonal()
        Array([1., 5.], dtype=float32)
    """

    rows: PyTree
    maker: ClassVar[str] = "ok.LowRank"
    is_psd: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_rows(Check("ok.LowRank"), self.rows)

    @property
    def num_rows(self) -> int:
        """The number of rows, r."""
        return num_rows(self.rows)

    def product(self, vector: Params) -> Params:
        """Uᵀ(Ux)."""
        return combine(project(self.rows, vector), self.rows)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the rows without their leading axis."""
        return structure_of(self.rows, drop=1)

    def diagonal(self) -> Params:
        """The sum of squares of each column of U."""
        return _column_squares(self.rows)

    def block_diagonal(self, block_size: int) -> "BlockLowRank":
        """The diagonal blocks of C, of `block_size` consecutive entries of a leaf."""
        return BlockLowRank(self.rows, block_size)


class BlockLowRank(AbstractCurvature):
    """The block diagonal of C = UᵀU, in blocks of B consecutive entries of each leaf.

    Entries are taken in C order, and no block crosses leaves. The last block of a leaf
    may be shorter; `split` pads it with zeros. Splitting reshapes leaves, so on several
    devices keep leaves whole, or shard only their leading axis.

    Args:
        rows: real leaves (r, *leaf shape), with the same r for all.
        block_size: B >= 1. A leaf with at most B entries is one block.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 2.0, 3.0]]))
        >>> C.block_diagonal(2).as_matrix()
        Array([[1., 2., 0.],
               [2., 4., 0.],
               [0., 0., 9.]], dtype=float32)

    Reference:
        Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356, section 3.
    """

    rows: PyTree
    block_size: int = eqx.field(static=True)
    maker: ClassVar[str] = "ok.BlockLowRank"
    is_psd: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check = Check("ok.BlockLowRank")
        _check_rows(check, self.rows)
        check.count(block_size=self.block_size)

    def product(self, vector: Params) -> Params:
        """U_bᵀ(U_b x_b) in each block b."""
        product = jax.vmap(lambda u, x: combine(project(u, x), u), in_axes=(1, 0))
        blocks = jax.tree.map(product, self.split(self.rows, 1), self.split(vector))
        return self.join(blocks)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the rows without their leading axis."""
        return structure_of(self.rows, drop=1)

    def diagonal(self) -> Params:
        """The sum of squares of each column of U."""
        return _column_squares(self.rows)

    def split(self, tree: PyTree, num_kept: int = 0) -> PyTree:
        """Returns the leaves cut into blocks, the last of each padded with zeros.

        Leaves (*kept, *leaf shape) become (*kept, number of blocks, block length), with
        `num_kept` axes kept: 0 for a vector, 1 for rows. The block length is B, or the
        size of the leaf if that is smaller.
        """

        def split_leaf(leaf: Array) -> Array:
            kept, size = leaf.shape[:num_kept], math.prod(leaf.shape[num_kept:])
            length = max(min(self.block_size, size), 1)
            num_blocks = -(-size // length)
            flat = leaf.reshape(*kept, size)
            padding = [(0, 0)] * num_kept + [(0, num_blocks * length - size)]
            return jnp.pad(flat, padding).reshape(*kept, num_blocks, length)

        return jax.tree.map(split_leaf, tree)

    def join(self, blocks: PyTree) -> Params:
        """Undoes `split` of a vector."""

        def join_leaf(block: Array, like: jax.ShapeDtypeStruct) -> Array:
            size = math.prod(like.shape)
            return block.reshape(-1)[:size].reshape(like.shape)

        return jax.tree.map(join_leaf, blocks, self.in_structure())


def empirical_fisher(
    example_loss: Callable[..., Any],
    params: Params,
    batch: PyTree,
    *,
    chunk: int | None = None,
) -> LowRank:
    """Returns the mean of g gᵀ over a batch, with g the gradient of one example.

    C = 1/m Σᵢ gᵢ gᵢᵀ with gᵢ = ∇ example_loss(params, exampleᵢ), i = 1 ... m. It is
    an `ok.LowRank` of m rows gᵢ/√m, m times the memory of the params.

    Args:
        example_loss: example_loss(params, example) -> the scalar loss of ONE
            example, whose leaves have no batch axis.
        params: real floating leaves.
        batch: a pytree whose leaves all have the examples along their first axis.
        chunk: how many gradients to compute at a time, by default all. It bounds the
            memory of the backward pass, not that of the rows, and need not divide m.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def example_loss(w, example):
        ...     x, y = example
        ...     return 0.5 * (x @ w - y) ** 2
        >>> batch = (jnp.eye(2), jnp.array([1.0, 3.0]))
        >>> ok.empirical_fisher(example_loss, jnp.zeros(2), batch).as_matrix().round(4)
        Array([[0.5, 0. ],
               [0. , 4.5]], dtype=float32)

    Reference:
        Kunstner, Balles and Hennig 2019, arXiv:1905.12558, on how it differs from the
        Fisher information, whose labels are sampled from the model.
    """
    check = Check("ok.empirical_fisher")
    gradient = jax.grad(check.scalar(example_loss, "example_loss"))
    check.real(params=params)
    check.batch(batch=batch)
    check.optional.count(chunk=chunk)
    m = len(jax.tree.leaves(batch)[0])

    def row(example: PyTree) -> Params:
        return scale(m**-0.5, gradient(params, example))

    if chunk is None or chunk >= m:
        return LowRank(jax.vmap(row)(batch))
    return LowRank(lax.map(row, batch, batch_size=chunk))


def _check_rows(check: Check, rows: PyTree) -> None:
    check.real(rows=rows)
    shapes = [jnp.shape(row) for row in jax.tree.leaves(rows)]
    lengths = {shape[:1] for shape in shapes}
    text = f"needs rows whose leaves share a leading axis, got shapes {shapes}."
    check.that(len(lengths) <= 1 and () not in lengths, text)


def _column_squares(rows: PyTree) -> Params:
    def squares(u: Array) -> Any:
        return jnp.sum(u.astype(wide_dtype(u)) ** 2, axis=0)

    return jax.tree.map(squares, rows)
