"""Anderson acceleration: the fixed point of a mapping, from its last few residuals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import Check
from .._results import RESULTS, first_failure
from .._types import wide_dtype
from .._vector import (
    axpy,
    cast_like,
    combine,
    common_dtype,
    dot,
    normalised,
    project,
    safe_norm,
    subtract,
    where,
    widen,
)


class AndersonInfo(NamedTuple):
    """How an iteration went.

    Attributes:
        num_steps: evaluations of the mapping.
        residual: |f(y) - y| / |f(y)| at the y that is returned.
        result: an item of `ok.RESULTS`, whose text is `ok.RESULTS[result]`.
    """

    num_steps: Array
    residual: Array
    result: Any


class _State(NamedTuple):
    """The iterate, the window of the last m of them, and the best one."""

    y: PyTree
    ys: PyTree
    units: PyTree  # r_i / |r_i|, so that no square under- or overflows
    norms: Float[Array, " m"]  # |r_i|
    gram: Float[Array, "m m"]  # of the units
    best: PyTree
    best_error: Array
    num_steps: Array
    is_done: Array
    is_broken: Array


def anderson(
    mapping: Callable[[PyTree, PyTree], PyTree],
    y0: PyTree,
    args: PyTree = None,
    *,
    history: int = 5,
    mixing: ArrayLike = 1.0,
    ridge: ArrayLike | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike = 0.0,
    max_steps: int = 100,
) -> tuple[PyTree, AndersonInfo]:
    """A fixed point y = mapping(y, args) by Anderson acceleration.

    With r_i = f(y_i) - y_i over the last m iterates and K_ij = r_iᵀr_j,
        α = argmin |Σ α_i r_i|² + δ Σ α_i² |r_i|²   subject to   Σ α_i = 1
          = u / Σ u    with    (K + δ diag K) u = 1
        y <- Σ α_i (y_i + β r_i)
    until |r| <= rtol |f(y)| + atol.

    On a linear mapping it is GMRES in disguise, so converges in about as many steps as
    the mapping has eigenvalues. Returned is the iterate of the smallest residual.

    It need not converge where the plain iteration does: on a mapping with kinks, such
    as a proximal step, or with I - ∂f nearly singular, the residual can stall, and
    the result is `max_steps_reached`. A smaller `history` helps; with 1, it is the
    plain iteration, which always converges for a contraction.

    Derivatives through the loop are for `ok.implicit_fixed_point` to replace:

        solve = functools.partial(ok.solvers.anderson, mapping)
        solve = ok.implicit_fixed_point(mapping, has_aux=True)(solve)

    Under `jax.vmap` each sample stops on its own residual. A batch inside y is one
    fixed point, with one residual.

    Args:
        mapping: f, `(y, args)` to a tree like y.
        y0: the guess, real leaves.
        args: what else the mapping reads.
        history: m, how many iterates to keep. 1 is the Picard iteration, damped by β.
        mixing: β > 0: 1 as it is, below damped, above overrelaxed.
        ridge: δ, relative to each residual's own square. None is 10 m times the
            rounding error of the narrowest leaf, at least float32.
        rtol: where to stop, relative to |f(y)|. None is 1e-5, or the rounding error
            of the narrowest leaf where that is more, as in bfloat16.
        atol: where to stop, absolute: for fixed points at 0.
        max_steps: at most so many evaluations.

    Returns:
        y, like y0; and an `AndersonInfo`. Its `result` is `successful`,
        `max_steps_reached`, or `nonfinite_iterate` where the mapping is NaN or
        infinite: then y is the best iterate before, or y0.

    Raises:
        TypeError: for leaves of y0 that are not real.
        ValueError: for an option out of range, a y0 without arrays, or a mapping that
            returns another structure or shape.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> y, info = ok.solvers.anderson(lambda y, a: jnp.cos(a * y), jnp.array(0.0), 1.0)
        >>> print(y.round(4), info.num_steps < 10)
        0.7391 True

    Reference:
        Walker and Ni 2011, doi:10.1137/10078356X, algorithm AA. Departs: (1) the
        constrained problem through its Gram matrix, which is kept up to date one row a
        step; (2) a ridge that does not depend on the scale of y.
    """
    check = Check("ok.solvers.anderson")
    check.function(mapping=mapping)
    check.real(y0=y0)
    check.count(history=history, max_steps=max_steps)
    check.positive(mixing=mixing)
    check.non_negative(atol=atol)
    check.optional.non_negative(rtol=rtol, ridge=ridge)
    check.that(jax.tree.leaves(y0), f"needs a y0 with an array in it, got {y0!r}.")
    y0 = jax.tree.map(jnp.asarray, y0)
    dtype = common_dtype(y0)
    if rtol is None:
        eps = [float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(y0)]
        rtol = max(1e-5, *eps)
    if ridge is None:
        # Of the widest leaf it would be too small for the rounding of the others.
        eps = [float(jnp.finfo(wide_dtype(leaf)).eps) for leaf in jax.tree.leaves(y0)]
        ridge = 10 * history * max(eps)
    beta, delta, rtol, atol = (
        jnp.asarray(value, dtype) for value in (mixing, ridge, rtol, atol)
    )

    def step(state: _State) -> _State:
        f = widen(_like(check, mapping(cast_like(state.y, y0), args), y0))
        return _step(state, f, beta, delta, (rtol, atol))

    def goes_on(state: _State) -> Array:
        return ~state.is_done & ~state.is_broken & (state.num_steps < max_steps)

    end = lax.while_loop(goes_on, step, _start(widen(y0), history, dtype))
    result = first_failure(
        (end.is_broken, RESULTS.nonfinite_iterate),
        (~end.is_done, RESULTS.max_steps_reached),
    )
    info = AndersonInfo(end.num_steps, end.best_error, result)
    return cast_like(end.best, y0), info


def _step(
    state: _State, f: PyTree, beta: Array, delta: Array, goals: tuple[Array, Array]
) -> _State:
    """The next iterate, from f(y) and the window."""
    y, m = state.y, state.norms.size
    (rtol, atol), r = goals, subtract(f, y)
    size, (unit, norm) = safe_norm(f), normalised(r)
    norm = jnp.where(dot(unit, unit) == 0, 0, norm)
    error = norm / jnp.where(size > 0, size, 1)
    is_done = norm <= rtol * size + atol
    is_better = is_done | (error < state.best_error)
    slot = state.num_steps % m
    ys, units = _written(state.ys, slot, y), _written(state.units, slot, unit)
    norms = state.norms.at[slot].set(norm)
    row = project(units, unit)
    gram = state.gram.at[slot].set(row).at[:, slot].set(row)
    is_held = jnp.arange(m, dtype=jnp.int32) <= state.num_steps
    alpha = _weights(gram, norms, is_held, delta)
    return _State(
        axpy(beta, combine(alpha * norms, units), combine(alpha, ys)),
        ys,
        units,
        norms,
        gram,
        where(is_better, y, state.best),
        jnp.where(is_better, error, state.best_error),
        state.num_steps + 1,
        is_done,
        ~jnp.isfinite(norm),
    )


def _start(y: PyTree, m: int, dtype: Any) -> _State:
    """The state before the first evaluation."""
    window = jax.tree.map(  # sharded as y
        lambda x: jnp.broadcast_to(jnp.zeros_like(x), (m, *x.shape)), y
    )
    return _State(
        y=y,
        ys=window,
        units=window,
        norms=jnp.zeros(m, dtype),
        gram=jnp.zeros((m, m), dtype),
        best=y,
        best_error=jnp.full((), jnp.inf, dtype),
        num_steps=jnp.zeros((), jnp.int32),
        is_done=jnp.zeros((), bool),
        is_broken=jnp.zeros((), bool),
    )


def _weights(
    gram: Float[Array, "m m"], norms: Float[Array, " m"], is_held: Array, delta: Array
) -> Float[Array, " m"]:
    """α of the slots that are held; 0 of the others."""
    # In units of each residual's norm: the matrix is a correlation, whatever the scale.
    is_used = is_held & (norms > 0)
    eye = jnp.eye(norms.size, dtype=gram.dtype)
    correlation = jnp.where(is_used[:, None] & is_used, gram, 0)
    matrix = correlation + jnp.where(is_used, delta, 1) * eye
    least = jnp.min(jnp.where(is_used, norms, jnp.inf))
    scaled = jnp.where(is_used, least / jnp.where(is_used, norms, 1), 0)
    u = jnp.linalg.solve(matrix, scaled) * scaled
    total = jnp.sum(u)
    return u / jnp.where(total != 0, total, 1)


def _like(check: Check, tree: PyTree, y: PyTree) -> PyTree:
    """What the mapping returned, after checking structure and shapes."""
    check.like("mapping(y, args)", tree, y, "y", dtype_of=None)
    return jax.tree.map(jnp.asarray, tree)


def _written(window: PyTree, slot: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda w, x: w.at[slot].set(x.astype(w.dtype)), window, tree)
