"""Low-rank curvature C = UᵀU of stacked rows, such as per-example gradients."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import Params, wide_dtype
from .._vector import combine, explicit_sharding, num_rows, project, scale, structure_of
from .base import AbstractCurvature

_COLUMNS = 2048  # columns of blocks at a time


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

        def product(u: Array, x: Array) -> Array:
            return combine(project(u, x), u)

        return self.join(self.over_blocks(product, self.split(vector)))

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

    def over_blocks(self, f: Callable[..., Array], *trees: PyTree) -> PyTree:
        """Returns f(U_b, ...) for the columns U_b of each block, stacked for each leaf.

        Each leaf of `trees` has one entry per block, a further argument of f. The rows
        are neither copied nor cast as a whole.
        """

        def over_leaf(u: Array, *others: Array) -> Array:
            length = max(min(self.block_size, math.prod(u.shape[1:])), 1)
            return _over_leaf(f, u, length, others)

        return jax.tree.map(over_leaf, self.rows, *trees)

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


def _over_leaf(
    f: Callable[..., Array], u: Array, length: int, others: tuple[Array, ...]
) -> Array:
    """f over the blocks of a leaf, about 2048 columns at a time."""
    r, size = u.shape[0], math.prod(u.shape[1:])
    whole, rest = divmod(size, length)
    flat = u.reshape(r, size)
    several = jax.vmap(f, in_axes=(1, *(0 for _ in others)))

    def tail(start: int) -> Array:
        columns = lax.optimization_barrier(flat[:, start * length :])
        columns = jnp.pad(columns, [(0, 0), (0, -columns.shape[1] % length)])
        return several(columns.reshape(r, -1, length), *(x[start:] for x in others))

    width = max(_COLUMNS // length, 1)
    if whole <= width or explicit_sharding(u):
        return tail(0)
    divisor = max(d for d in range(1, width + 1) if whole % d == 0)
    if not rest and 4 * divisor > width:
        return _strided(several, flat.reshape(r, divisor, -1, length), others)

    def fill(i: Any, result: Array) -> Array:
        # Without the barrier, XLA casts all rows before the loop. Without `reshape`, it
        # transposes all Cholesky factors before the loop.
        here, i = lax.optimization_barrier((flat, i))
        start = jnp.minimum(i * width, whole - width)  # the last step may overlap
        columns = lax.dynamic_slice_in_dim(here, start * length, width * length, 1)
        parts = (
            lax.dynamic_slice_in_dim(x.reshape(len(x), -1), start, width).reshape(
                width, *x.shape[1:]
            )
            for x in others
        )
        part = several(columns.reshape(r, width, length), *parts)
        return lax.dynamic_update_slice_in_dim(result, part, start, 0)

    last = tail(whole) if rest else jax.eval_shape(partial(tail, whole - 1))
    result = jnp.zeros((whole + (rest > 0), *last.shape[1:]), last.dtype)
    result = lax.fori_loop(0, -(-whole // width), fill, result)
    return result.at[whole:].set(last) if rest else result


# The blocks of a step are far apart, so that on several devices each one works on its
# own blocks in every step.
def _strided(
    several: Callable[..., Array], u: Array, others: tuple[Array, ...]
) -> Array:
    _, width, num_steps, _ = u.shape
    others = tuple(x.reshape(width, num_steps, *x.shape[1:]) for x in others)

    def at(i: Any) -> Array:
        here, i = lax.optimization_barrier((u, i))
        parts = (lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in others)
        return several(lax.dynamic_index_in_dim(here, i, 2, keepdims=False), *parts)

    def fill(i: Any, result: Array) -> Array:
        return lax.dynamic_update_index_in_dim(result, at(i), i, 1)

    one = jax.eval_shape(at, 0)
    result = jnp.zeros((width, num_steps, *one.shape[1:]), one.dtype)
    result = lax.fori_loop(0, num_steps, fill, result)
    return result.reshape(width * num_steps, *one.shape[1:])


def _column_squares(rows: PyTree) -> Params:
    def squares(u: Array) -> Any:
        return jnp.sum(u.astype(wide_dtype(u)) ** 2, axis=0)

    return jax.tree.map(squares, rows)
