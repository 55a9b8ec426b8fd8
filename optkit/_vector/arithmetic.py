"""Arithmetic of pytrees: sums in float32 or wider, results in the leaves' dtypes.

No function ravels a tree, so sharded leaves stay where they are.
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
    """xᵀy over all leaves."""
    dtype = common_dtype((x, y))
    return sum_of(dtype, (), jax.tree.map(lambda a, b: contract(a, b, 0), x, y))


def norm(x: PyTree) -> Float[Array, ""]:
    """|x| over all leaves."""
    return jnp.sqrt(dot(x, x))


def axpy(a: ArrayLike, x: PyTree, y: PyTree) -> PyTree:
    """The sum a x + y, rounded once to the dtypes of y."""

    def one(x: Array, y: Array) -> Array:
        wide = wide_dtype(y)
        total = jnp.asarray(a).astype(wide) * jnp.asarray(x).astype(wide)
        return (total + jnp.asarray(y).astype(wide)).astype(jnp.result_type(y))

    return jax.tree.map(one, x, y)


def scale(a: ArrayLike, x: PyTree) -> PyTree:
    """The product a x, rounded once to the dtypes of x."""

    def one(x: Array) -> Array:
        wide = wide_dtype(x)
        product = jnp.asarray(a).astype(wide) * jnp.asarray(x).astype(wide)
        return product.astype(jnp.result_type(x))

    return jax.tree.map(one, x)


def add(x: PyTree, y: PyTree) -> PyTree:
    """The sum x + y."""
    return jax.tree.map(jnp.add, x, y)


def subtract(x: PyTree, y: PyTree) -> PyTree:
    """The difference x - y."""
    return jax.tree.map(jnp.subtract, x, y)


def multiply(x: PyTree, y: PyTree) -> PyTree:
    """The product x ∘ y, entry by entry."""
    return jax.tree.map(jnp.multiply, x, y)


def zeros_like(tree: PyTree) -> PyTree:
    """Zeros in the shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(jnp.zeros_like, tree)


def widen(tree: PyTree) -> PyTree:
    """The tree in float32 or wider."""
    return jax.tree.map(lambda a: a.astype(wide_dtype(a)), tree)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree in the dtypes of another tree of arrays or `jax.ShapeDtypeStruct`s."""

    def one(a: Any, b: Any) -> Array:
        return jnp.asarray(a).astype(jnp.result_type(b))

    return jax.tree.map(one, tree, like)


def where(holds: Bool[Array, ""], this: PyTree, other: PyTree) -> PyTree:
    """Selects one of two trees with the same structure."""
    return jax.tree.map(lambda a, b: jnp.where(holds, a, b), this, other)


def strong(tree: PyTree) -> PyTree:
    """Copies whose dtypes are not weak, so that a step compiles once."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, jnp.result_type(leaf)), tree)


def constant(tree: PyTree) -> PyTree:
    """The tree with derivatives stopped; leaves that have none are unchanged."""

    def one(x: Any) -> Any:
        if not eqx.is_inexact_array(x):
            return x
        # The tracer of a Python number holds that number, not an array; a NumPy array
        # may be wider than JAX's widest dtype.
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jnp.asarray(lax.stop_gradient(x), dtype)

    return jax.tree.map(one, tree)


def all_finite(tree: PyTree, *alike: PyTree) -> Any:
    """Whether every entry is finite, in one or more trees of the same shapes."""

    def is_finite(*leaves: Any) -> Any:
        real = [a for a in leaves if jnp.issubdtype(jnp.result_type(a), jnp.inexact)]
        if not real:
            return jnp.asarray(True)
        # 0·a is 0 for a finite a, else NaN. On CPU, XLA sums numbers faster than it
        # reduces flags, and compiles the sum in a fraction of the time.
        zeros = [(0 * leaf).astype(wide_dtype(leaf)) for leaf in real]
        return jnp.isfinite(jnp.sum(functools.reduce(jnp.add, zeros)))

    flags = jax.tree.leaves(jax.tree.map(is_finite, tree, *alike))
    return functools.reduce(jnp.logical_and, flags, jnp.asarray(True))
