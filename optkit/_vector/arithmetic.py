"""Arithmetic of pytrees: sums in float32 or wider, results in the leaves' own dtypes.

Nothing here ravels a tree, so sharded leaves stay where they are.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, PyTree

from .._types import wide_dtype
from .rows import contract, sum_of
from .structure import common_dtype


def dot(x: PyTree, y: PyTree) -> Float[Array, ""]:
    """xᵀy, over all leaves."""
    dtype = common_dtype((x, y))
    return sum_of(dtype, (), jax.tree.map(lambda a, b: contract(a, b, 0), x, y))


def norm(x: PyTree) -> Float[Array, ""]:
    """|x| over all leaves together."""
    return jnp.sqrt(dot(x, x))


def axpy(a: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """The sum a x + y in the dtypes of y, rounded once."""

    def one(x: Array, y: Array) -> Array:
        wide = wide_dtype(y)
        total = jnp.asarray(a).astype(wide) * jnp.asarray(x).astype(wide)
        return (total + jnp.asarray(y).astype(wide)).astype(jnp.result_type(y))

    return jax.tree.map(one, x, y)


def scale(a: ArrayLike, x: PyTree) -> PyTree:
    """The product a x in the dtypes of x, rounded once."""

    def one(x: Array) -> Array:
        wide = wide_dtype(x)
        product = jnp.asarray(a).astype(wide) * jnp.asarray(x).astype(wide)
        return product.astype(jnp.result_type(x))

    return jax.tree.map(one, x)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """The difference x - y."""
    return jax.tree.map(jnp.subtract, x, y)


def widen(tree: PyTree) -> PyTree:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a)), tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another, of arrays or `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(
        lambda a, b: jnp.asarray(a).astype(jnp.result_type(b)), tree, like
    )


def where(holds: Bool[Array, ""], this: PyTree, other: PyTree) -> PyTree:
    """Picks one of two trees of the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(holds, a, b), this, other)


def strong(tree: PyTree) -> PyTree:
    """New arrays whose dtypes are not weak, so that a step compiles once."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)


def constant(tree: PyTree) -> PyTree:
    """The tree without derivatives; leaves that have none stay as they are."""

    def one(x: Any) -> Any:
        if not eqx.is_inexact_array(x):
            return x
        # `jax.grad` of a Python number has that number inside. NumPy's may be wider
        # than JAX's widest.
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jnp.asarray(lax.stop_gradient(x), dtype)

    return jax.tree.map(one, tree)


def all_finite(tree: PyTree, *alike: PyTree) -> Any:
    """Whether no entry of trees, of one structure and shapes, is NaN or infinite."""

    def is_finite(*leaves: Any) -> Any:
        real = [a for a in leaves if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
        if not real:
            return jnp.asarray(True)
        # 0·a is NaN for such an a, else 0. XLA on CPU sums numbers faster than it
        # reduces flags, and compiles that in a fraction of the time.
        nothing = [(0 * leaf).astype(wide_dtype(leaf)) for leaf in real]
        return jnp.isfinite(jnp.sum(functools.reduce(jnp.add, nothing)))

    flags = jax.tree.leaves(jax.tree.map(is_finite, tree, *alike))
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))
