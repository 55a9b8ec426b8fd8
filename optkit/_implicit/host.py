"""A NumPy or SciPy solver inside `jax.jit`."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._check import Check
from .._types import Params
from .._vector import structure_of
from .call import P, bound


def host_solver(
    solve: Callable[P, PyTree],
) -> Callable[P, Params]:
    """Makes a NumPy or SciPy solver callable under `jit`, `vmap` and `scan`.

    The solver runs on the host through `jax.pure_callback`, once per element of a
    batch. It has no derivative of its own: decorate it with `ok.implicit_root`,
    `ok.implicit_minimum` or `ok.implicit_fixed_point`. Outside `jit` these accept a
    NumPy solver as it is.

    Args:
        solve: solve(y0, args) -> y. It gets NumPy arrays and returns numbers in the
            structure and shapes of y0. It must be pure, and should not call JAX, which
            may deadlock. Real numbers arrive as float64 whatever their dtype was: in
            float32, SciPy's finite differences are zero, and it takes any y0 for a
            solution.

    Returns:
        A solver of (y0, args) that returns arrays in the shapes and dtypes of y0.

    Raises:
        RuntimeError: when called, from JAX, if `solve` raises or y differs from y0 in
            structure or shape. It contains the original message.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np, optkit as ok
        >>> @jax.jit
        ... @ok.implicit_root(lambda y, a: y**3 - a)
        ... @ok.host_solver
        ... def cube_root(y0, a):
        ...     return np.cbrt(a)
        >>> print(f"{jax.grad(cube_root, argnums=1)(1.0, 8.0):.4f}")
        0.0833
    """
    check = Check("ok.host_solver")
    check.function(solve=solve)

    @functools.wraps(solve)
    def on_host(*inputs: P.args, **keywords: P.kwargs) -> Params:
        y0, args, options = bound(check, solve, inputs, keywords)
        y0 = jax.tree.map(jnp.asarray, y0)
        check.inexact(y0=y0)  # y is cast to its dtypes
        arrays, rest = eqx.partition(args, eqx.is_array)
        structure = structure_of(y0)

        def run(y0: Any, arrays: Any) -> Any:
            y0, arrays = jax.tree.map(_as_numpy, (y0, arrays))
            y = solve(y0, eqx.combine(arrays, rest), **options)  # pyright: ignore
            advice = "Return y alone, for SciPy `result.x`, in the shapes of y0."
            check.like("y", y, structure, "y0", advice, dtype_of=None)
            return jax.tree.map(lambda a, b: np.asarray(a, b.dtype), y, structure)

        return jax.pure_callback(run, structure, y0, arrays, vmap_method="sequential")

    return on_host


def _as_numpy(leaf: Any) -> np.ndarray:
    is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
    return np.asarray(leaf, np.float64 if is_real else None)
