"""Anderson acceleration: a fixed point of a mapping, from its last few residuals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import Check
from .._results import RESULTS, described, first_failure
from .._types import wide_dtype
from .._vector import (
    axpy,
    cast_like,
    combine,
    common_dtype,
    dot,
    normalised,
    project,
    relative_norm,
    safe_norm,
    subtract,
    where,
    widen,
)

_GROWTH = 10.0  # of the residual, above which the window is emptied


class AndersonInfo(NamedTuple):
    """How an iteration ended.

    Attributes:
        num_steps: evaluations of the mapping.
        residual: |f(y) - y| / |f(y)| at the returned y.
        result: an item of `ok.RESULTS`; its text is `ok.RESULTS[result]`.
        aux: with `has_aux`, what the mapping returns beside f at the returned y.
    """

    num_steps: Array
    residual: Array
    result: Any
    aux: PyTree = None

    __repr__ = described


class _State(NamedTuple):
    """The iterate, a window of the last m, and the best iterate."""

    y: PyTree
    ys: PyTree
    units: PyTree  # r_i / |r_i|, so that no square under- or overflows
    norms: Float[Array, " m"]  # |r_i|
    gram: Float[Array, "m m"]  # of the units
    num_held: Array  # residuals since the window was empty
    last: Array  # |r| of the iterate before
    least: Array  # the smallest |r|
    is_expansive: Array  # whether the last plain step made |r| grow
    best: PyTree
    best_aux: PyTree
    best_error: Array
    num_steps: Array
    is_done: Array
    is_broken: Array


def anderson(
    mapping: Callable[[PyTree, PyTree], Any],
    y0: PyTree,
    args: PyTree = None,
    *,
    history: int = 5,
    mixing: ArrayLike = 1.0,
    ridge: ArrayLike | None = None,
    rtol: ArrayLike | None = None,
    atol: ArrayLike = 0.0,
    max_steps: int = 100,
    has_aux: bool = False,
) -> tuple[PyTree, AndersonInfo]:
    """Finds a fixed point y = mapping(y, args) by Anderson acceleration.

    With r_i = f(y_i) - y_i over the last m iterates and K_ij = r_iᵀr_j,

        α = argmin |Σ α_i r_i|² + δ Σ α_i² |r_i|²   subject to   Σ α_i = 1
          = u / Σ u    with    (K + δ diag K) u = 1
        y <- Σ α_i (y_i + β r_i)

    until |r| <= rtol |f(y)| + atol. It returns the iterate with the smallest residual.
    On a linear mapping this is GMRES in disguise: it converges in about as many steps
    as the mapping has distinct eigenvalues.

    On a mapping with kinks, such as a projection, extrapolation can go astray. Where
    |r| exceeds ten times the smallest so far, the window is emptied, and the next step
    is a plain one. This does not apply after a plain step has made |r| grow, because
    then the mapping does not contract and only extrapolation can converge. If the
    residual stalls all the same, the result is `max_steps_reached`. A smaller `history`
    helps; `history=1` is plain iteration, which always converges for a contraction.

    Do not differentiate through the loop; decorate the solver instead:

        solve = functools.partial(ok.solvers.anderson, mapping)
        solve = ok.implicit_fixed_point(mapping, has_aux=True)(solve)

    Under `jax.vmap` each sample stops on its own residual. A batch inside y is one
    fixed point, with one residual.

    Args:
        mapping: f(y, args) -> a pytree like y.
        y0: the starting point, with real leaves.
        args: whatever else the mapping needs.
        history: m, how many iterates to keep. 1 is Picard iteration, damped by β.
        mixing: β > 0. Below 1 it damps the iteration, above 1 it overrelaxes.
        ridge: δ, relative to the square of each residual. Default 10 m times the
            rounding error of the narrowest leaf, counted as at least float32.
        rtol: the tolerance relative to |f(y)|. Default 1e-5, or the rounding error of
            the narrowest leaf if that is larger, as in bfloat16.
        atol: the absolute tolerance, for fixed points at 0.
        max_steps: the largest number of evaluations.
        has_aux: whether the mapping returns (f, aux), with arrays in aux. `info.aux` is
            the one at the returned y, and 0 if no evaluation was finite. For
            `ok.implicit_fixed_point`, take f alone: `lambda y, a: mapping(y, a)[0]`.

    Returns:
        y, like y0, and an `AndersonInfo`. Its `result` is `successful`,
        `max_steps_reached`, or, if the mapping is NaN or infinite, `nonfinite_iterate`:
        y is then the best iterate before, or y0.

    Raises:
        ValueError: if y0 has no arrays, or the mapping returns another structure or
            shape.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> mapping = lambda y, a: jnp.cos(a * y)
        >>> y, info = ok.solvers.anderson(mapping, jnp.array(0.0), 1.0)
        >>> print(y.round(4), info.num_steps < 10)
        0.7391 True

    Reference:
        Walker and Ni 2011, doi:10.1137/10078356X, algorithm AA. Departs: (1) the
        constrained problem is solved by its Gram matrix, which is updated by one row
        per step; (2) the ridge does not depend on the scale of y; (3) the safeguard,
        which is in the spirit of Zhang, O'Donoghue and Boyd 2020, arXiv:1808.03971,
        with the smallest residual in place of a bound that decreases with the steps.
    """
    check = Check("ok.solvers.anderson")
    check.function(mapping=mapping)
    check.real(y0=y0)
    check.count(history=history, max_steps=max_steps)
    check.positive(mixing=mixing)
    check.non_negative(atol=atol)
    check.optional.non_negative(rtol=rtol, ridge=ridge)
    check.that(jax.tree.leaves(y0), f"needs y0 with an array in it, got {y0!r}.")
    y0 = jax.tree.map(jnp.asarray, y0)
    dtype = common_dtype(y0)
    if rtol is None:
        eps = [float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(y0)]
        rtol = max(1e-5, *eps)
    if ridge is None:
        # The eps of the widest leaf would be too small for the others.
        eps = [float(jnp.finfo(wide_dtype(leaf)).eps) for leaf in jax.tree.leaves(y0)]
        ridge = 10 * history * max(eps)
    beta, delta, rtol, atol = (
        jnp.asarray(value, dtype) for value in (mixing, ridge, rtol, atol)
    )

    def evaluated(y: PyTree) -> tuple[PyTree, PyTree]:
        f = mapping(cast_like(y, y0), args)
        text = f"needs a mapping that returns (f, aux), got {type(f).__name__}."
        check.that(not has_aux or (isinstance(f, tuple) and len(f) == 2), text)
        f, aux = f if has_aux else (f, None)
        check.like("mapping(y, args)", f, y0, "y", dtype_of=None)
        return widen(jax.tree.map(jnp.asarray, f)), jax.tree.map(jnp.asarray, aux)

    def step(state: _State) -> _State:
        return _step(state, *evaluated(state.y), beta, delta, (rtol, atol))

    def goes_on(state: _State) -> Array:
        return ~state.is_done & ~state.is_broken & (state.num_steps < max_steps)

    start = _start(widen(y0), history, dtype)
    if has_aux:
        _, aux = jax.eval_shape(evaluated, start.y)
        aux = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), aux)
        start = start._replace(best_aux=aux)
    end = lax.while_loop(goes_on, step, start)
    result = first_failure(
        (end.is_broken, RESULTS.nonfinite_iterate),
        (~end.is_done, RESULTS.max_steps_reached),
    )
    info = AndersonInfo(end.num_steps, end.best_error, result, end.best_aux)
    return cast_like(end.best, y0), info


def _step(
    state: _State,
    f: PyTree,
    aux: PyTree,
    beta: Array,
    delta: Array,
    goals: tuple[Array, Array],
) -> _State:
    """The next iterate, from f(y) and the window."""
    y, m = state.y, state.norms.size
    (rtol, atol), r = goals, subtract(f, y)
    size, (unit, norm) = safe_norm(f), normalised(r)
    norm = jnp.where(dot(unit, unit) == 0, 0, norm)
    error = relative_norm(r, f)
    # |f| may overflow although no entry does, and any residual is below infinity.
    is_done = norm <= rtol * jnp.minimum(size, jnp.finfo(size.dtype).max) + atol
    is_better = is_done | (error < state.best_error)
    was_plain = state.num_held == 1
    grew = norm > 1.001 * state.last  # by more than rounding
    is_expansive = jnp.where(was_plain, grew, state.is_expansive)
    is_astray = ~was_plain & ~is_expansive & (norm > _GROWTH * state.least)
    num_held = jnp.where(is_astray, 0, state.num_held)
    slot = num_held % m
    ys, units = _written(state.ys, slot, y), _written(state.units, slot, unit)
    norms = state.norms.at[slot].set(norm)
    row = project(units, unit)
    gram = state.gram.at[slot].set(row).at[:, slot].set(row)
    is_held = jnp.arange(m, dtype=jnp.int32) <= num_held
    alpha = _weights(gram, norms, is_held, delta)
    return _State(
        axpy(beta, combine(alpha * norms, units), combine(alpha, ys)),
        ys,
        units,
        norms,
        gram,
        num_held + 1,
        norm,
        jnp.minimum(norm, state.least),
        is_expansive,
        where(is_better, y, state.best),
        where(is_better, aux, state.best_aux),
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
    norms, gram = jnp.zeros(m, dtype), jnp.zeros((m, m), dtype)
    error, count = jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32)
    no = jnp.zeros((), bool)
    past = count, error, error, no
    return _State(y, window, window, norms, gram, *past, y, None, error, count, no, no)


def _weights(
    gram: Float[Array, "m m"], norms: Float[Array, " m"], is_held: Array, delta: Array
) -> Float[Array, " m"]:
    """α of the held slots, and 0 for the others."""
    # In units of each residual's norm, so the matrix is a correlation at any scale.
    is_used = is_held & (norms > 0)
    correlation = jnp.where(is_used[:, None] & is_used[None], gram, 0)
    matrix = correlation + jnp.diag(jnp.where(is_used, delta, 1))
    least = jnp.min(jnp.where(is_used, norms, jnp.inf))
    scaled = jnp.where(is_used, least / jnp.where(is_used, norms, 1), 0)
    u = jnp.linalg.solve(matrix, scaled) * scaled
    total = jnp.sum(u)
    return u / jnp.where(total != 0, total, 1)


def _written(window: PyTree, slot: Array, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda w, x: w.at[slot].set(x.astype(w.dtype)), window, tree)
