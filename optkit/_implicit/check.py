"""Compares an implicit derivative with finite differences, and explains the error."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from .._check import Check
from .._inverse.adapter import as_method
from .._results import RESULTS
from .._types import Params
from .._vector import (
    cast_like,
    common_dtype,
    constant,
    from_vector,
    normalised,
    normals,
    relative_norm,
    safe_norm,
    structure_of,
    subtract,
    to_vector,
    widen,
)
from .base import ImplicitSolve, linearize_residual
from .minimum import Minimum
from .verdict import ImplicitReport as ImplicitReport, verdict

_DENSE = 500  # coordinates
_POWER_STEPS = 20


def check_implicit(
    solve: ImplicitSolve,
    args: PyTree,
    *,
    y0: PyTree,
    key: Array,
    step: float | None = None,
    rtol: float | None = None,
) -> ImplicitReport:
    """Compares the implicit derivative of a solution with finite differences.

    Along a random direction t of all floating arrays in args, scaled to their size:

        implicit  ẏ = -A⁻¹ ∂_θF t        finite  (y(θ + h t) - y(θ - h t)) / 2h

    Use it when a derivative looks wrong. It runs the solver five times, from y0,
    outside `jit`. It detects a solver that stopped early, a Jacobian A that is singular
    or badly conditioned, a linear solve that missed its tolerance or has a loose one,
    bias from a cheap solve or from damping, and a mismatch of condition and solver.

    Args:
        solve: a solver decorated by `ok.implicit_root`, `ok.implicit_minimum` or
            `ok.implicit_fixed_point`.
        args: the args to check at.
        y0: the starting point of the solver.
        key: a random key, for the direction.
        step: h; default is the cube root of the eps of args. Use a larger step for an
            inexact solver.
        rtol: the accepted error; default 1e-2 in float32, 1e-5 in float64.

    Returns:
        An `ok.ImplicitReport`. Print it.

    Raises:
        TypeError: if `solve` is not decorated, or `key` is not one random key.
        ValueError: if args contains no floating array.

    Example:
        >>> import jax, jax.numpy as jnp, optkit as ok
        >>> @ok.implicit_root(lambda y, a: y**3 - a)
        ... def cube_root(y0, a):
        ...     return jnp.cbrt(a)
        >>> a = jnp.array([1.0, 8.0])
        >>> report = ok.check_implicit(cube_root, a, y0=a, key=jax.random.key(0))
        >>> print(report.verdict)
        The implicit derivative agrees with finite differences.
    """
    check = Check("ok.check_implicit")
    wanted = "a solver made by a decorator such as `ok.implicit_root`"
    check.instance(ImplicitSolve, wanted, solve=solve)
    check.key(key)
    check.optional.positive(step=step, rtol=rtol)
    args = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, args)
    theta, rest = eqx.partition(args, eqx.is_inexact_array)
    text = "needs a floating array in args to differentiate with respect to, got none."
    check.that(jax.tree.leaves(theta), text)
    eps = _precision(theta)
    h = eps ** (1 / 3) if step is None else step
    rtol = (1e-2 if eps > 1e-10 else 1e-5) if rtol is None else rtol
    t = _direction(key, theta)

    def solution(h: float) -> Params:
        moved = jax.tree.map(lambda x, t: x + jnp.asarray(h, x.dtype) * t, theta, t)
        out = solve(y0, eqx.combine(moved, rest))
        return widen(out[0] if solve.has_aux else out)

    def difference(h: float) -> Params:
        pair = solution(h), solution(-h)
        return jax.tree.map(lambda a, b: (a - b) / (2 * h), *pair)

    out = solve(y0, args)
    y = out[0] if solve.has_aux else out
    condition = solve.condition
    ydot, outcome, numbers = _analysed(condition, solve.solver, y, theta, rest, t, key)
    near, far = difference(h), difference(2 * h)
    numbers["error"] = relative_norm(subtract(widen(ydot), near), near)
    numbers["noise"] = relative_norm(subtract(near, far), near)
    report = ImplicitReport(**jax.tree.map(float, numbers), verdict="")
    damping = condition.damping if isinstance(condition, Minimum) else None
    words = verdict(report, outcome, rtol=rtol, eps=_precision(y), damping=damping)
    return report._replace(verdict=words)


@eqx.filter_jit
def _analysed(
    condition: Any,
    solver: lx.AbstractLinearSolver,
    y: Params,
    theta: PyTree,
    rest: PyTree,
    t: PyTree,
    key: Array,
) -> tuple[Params, Any, dict[str, Array]]:
    """ẏ, the outcome of its solves, and the numbers that need no further solver run."""

    def residual(theta: PyTree) -> Params:
        return condition.residual(y, eqx.combine(theta, rest))

    F, push = linearize_residual(condition, residual, theta)
    t_F = push(t)
    operator = condition.operator(y, eqx.combine(theta, rest))
    transposed = operator.transpose()
    method = as_method(solver)
    states = [method.init(constant(A), {}) for A in (operator, transposed)]

    def solved(is_transposed: bool, b: Params) -> tuple[Params, Array, Any]:
        A, factor = states[is_transposed]
        x, outcome, _ = method.apply(A, factor, b)
        r = subtract(widen(b), widen(A.mv(x)))
        return x, relative_norm(r, b), outcome

    ydot, forward, outcome = solved(False, jax.tree.map(jnp.negative, t_F))
    _, backward, outcome_t = solved(True, _direction(key, y))
    newton, _, _ = solved(False, F)
    is_fine = outcome == RESULTS.successful
    numbers = {
        "residual": safe_norm(F),
        "distance": relative_norm(newton, y),
        "condition_number": _condition_number(operator, transposed, solved, key),
        "backward_residual": jnp.maximum(forward, backward),
    }
    return ydot, RESULTS.where(is_fine, outcome_t, outcome), numbers


def _condition_number(
    operator: lx.AbstractLinearOperator,
    transposed: lx.AbstractLinearOperator,
    solved: Any,
    key: Array,
) -> Array:
    """σ_max / σ_min: dense if small, else by power iteration on AᵀA and its inverse."""
    structure = structure_of(operator.in_structure())
    linear = lx.linearise(operator)
    if operator.in_size() <= _DENSE:

        def column(e: Array) -> Array:
            return to_vector(linear.mv(from_vector(e, structure)))

        eye = jnp.eye(operator.in_size(), dtype=common_dtype(structure))
        return jnp.linalg.cond(jax.vmap(column)(eye))

    def power(product: Any, num_steps: int) -> Array:
        def step(_: Any, carry: Any) -> Any:
            v, _ = carry
            return normalised(product(cast_like(v, structure)))

        start = normalised(_direction(key, structure))
        return jax.lax.fori_loop(0, num_steps, step, start)[1]

    linear_t = lx.linearise(transposed)
    largest = power(lambda v: linear_t.mv(linear.mv(v)), _POWER_STEPS)
    smallest = power(lambda v: solved(False, solved(True, v)[0])[0], _POWER_STEPS // 4)
    return jnp.sqrt(largest * smallest)


def _precision(tree: PyTree) -> float:
    """The eps of the narrowest leaf."""
    return max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(tree)])


def _direction(key: Array, tree: PyTree) -> PyTree:
    """Normal random numbers, times the largest entry of each leaf unless that is 0."""

    def one(t: Array, leaf: Any) -> Array:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            peak = jnp.max(jnp.abs(leaf.astype(t.dtype)), initial=0)
            t = t * jnp.where(peak > 0, peak, 1)
        return t.astype(leaf.dtype)

    return jax.tree.map(one, normals(key, tree), tree)
