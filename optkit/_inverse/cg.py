"""Conjugate gradients that do not depend on scale and report failure."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._results import RESULTS, first_failure
from .._types import Params
from .._vector import axpy, cast_like, constant, dot, widen, zeros_like
from .base import AbstractIterative, Goals, Operator, Solved, System
from .inverse import precondition


class _Iterate(NamedTuple):
    """An iterate; x and r are in float32 or wider."""

    x: Params
    r: Params  # b - A x, by recurrence
    p: Params  # search direction, in the params' dtypes
    scalars: Array  # `_Scalars.stacked()`, so that one kernel computes them all
    steps: Array


class _Scalars(NamedTuple):
    """The scalars of an iterate, in float32 or wider; flags are 0 or 1."""

    rr: Array  # rᵀr
    rho: Array  # rᵀz
    pp: Array  # pᵀM⁻¹p, by recurrence
    checked: Array  # rᵀr when r was last computed as b - A x
    top: Array  # the largest curvature pᵀAp / pᵀM⁻¹p so far
    is_indefinite: Array
    is_last: Array  # no more steps
    is_done: Array  # r is b - A x, and the iteration ends

    def stacked(self) -> Array:
        """All in one array; `_Scalars(*array)` undoes it."""
        return jnp.stack([scalar.astype(self.rr.dtype) for scalar in self])


class CG(AbstractIterative):
    """Conjugate gradients, for any positive definite operator, matrix-free.

        α = rᵀz / pᵀAp    x <- x + α p    r <- r - α A p    z = M r
        p <- z + (rᵀz / old rᵀz) p

    until |b - A x| <= rtol |b|, by the true residual: once the recurrence for r has
    converged, b - A x is computed, and if it is too large, the method continues from
    it, as in iterative refinement. Further differences from `lx.CG`:

    1. b is scaled by its largest entry and there is no absolute tolerance, so the
       relative error is the same for a loss times 1e-9 and times 1e9;
    2. leaves may have different dtypes; x, r and all scalars are in float32 or wider;
    3. if a direction has negative curvature, or zero curvature to rounding, the method
       stops and reports it. The operator need not be tagged positive definite; one
       that is tagged negative semidefinite is negated.

    `options` of `lx.linear_solve` may hold a starting point `y0`, which saves steps but
    does not change the tolerance, and a `preconditioner`.

    It costs one product per step and per residual, about ½ √κ ln(2/rtol) in all, with
    κ = (λ_max + λ) / (λ_min + λ). Damping is the cheapest way to reduce κ.

    `stats` has `num_steps`, `max_steps`, and `residual`, the true |b - A x| / |b|.

    Args:
        rtol: the relative residual to reach, > 0, or 4 eps of the narrowest leaf if
            that is larger; a solve that misses it has failed. Default 1e-5, or 1e-10
            if all leaves are float64; up to √eps (3e-4 and 1.5e-8) is accepted where
            rounding prevents it, as in float32 at condition numbers in the hundreds.
        max_steps: default ten times the number of coordinates.
        preconditioner: M ≈ A⁻¹, a symmetric positive definite operator on the params,
            such as `ok.nystrom_preconditioner(P)` or an `ok.Inverse`. It changes the
            number of steps, not the solution, and is held constant in derivatives.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**2), jnp.zeros(2))
        >>> solution = ok.invert(C, ok.CG(), damping=1.0).solve(jnp.array([3.0, 6.0]))
        >>> print(solution.value, solution.stats["num_steps"])
        [1. 2.] 1

    Reference:
        Hestenes and Stiefel 1952; Shewchuk 1994, appendix B.3.
    """

    rtol: Any
    max_steps: int | None = eqx.field(static=True)
    preconditioner: Operator | None
    needs_symmetric: ClassVar[bool] = True
    options: ClassVar[frozenset[str]] = frozenset({"y0", "preconditioner"})

    def __init__(
        self,
        rtol: Any = None,
        max_steps: int | None = None,
        preconditioner: Operator | None = None,
    ) -> None:
        check = Check("ok.CG")
        check.optional.positive(rtol=rtol)
        check.optional.count(max_steps=max_steps)
        if preconditioner is not None:
            check.symmetric(preconditioner, "preconditioner")
        self.rtol, self.max_steps = rtol, max_steps
        self.preconditioner = constant(preconditioner)

    def factorise(self, operator: Operator) -> PyTree:
        """Checks that the preconditioner fits; there is nothing else to do."""
        if (m := self.preconditioner) is not None:
            pair = m.in_structure(), operator.in_structure()
            Check("ok.CG").like("the preconditioner's params", *pair, "the curvature's")
        return None

    def iterate(self, system: System, factor: PyTree) -> Solved:
        """Iterates from x = 0; the factor is a preconditioner or None."""
        b, bb = system.b, system.size**2
        max_steps = system.max_steps(self.max_steps)
        goals = Goals(*(x**2 for x in system.goals(self.rtol)))
        m = self.preconditioner if factor is None else factor
        z, rho = _precondition(m, b, bb, system.like)
        zero, is_bad = jnp.zeros_like(bb), _is_bad(bb, rho)
        start = _Scalars(bb, rho, rho, bb, zero, zero, is_bad, bb <= goals.wanted)
        end = lax.while_loop(
            _goes_on,
            lambda now: _step(m, system, goals, max_steps, now),
            _Iterate(
                x=zeros_like(b),
                r=b,
                p=cast_like(z, system.like),
                scalars=start.stacked(),
                steps=jnp.zeros((), jnp.int32),
            ),
        )
        last = _Scalars(*end.scalars)
        is_reached = last.rr <= goals.wanted
        is_reached |= (last.rr <= goals.accepted) & (last.is_last == 0)
        outcome = first_failure(
            (_is_bad(last.rr, last.rho), RESULTS.bad_preconditioner),
            (~jnp.isfinite(last.rr), RESULTS.nonfinite_operator),
            (is_reached, RESULTS.successful),
            (last.is_indefinite > 0, RESULTS.indefinite),
            (end.steps >= max_steps, RESULTS.max_steps_reached),
            (last.is_done > 0, RESULTS.inaccurate),
        )
        stats = {
            "num_steps": end.steps,
            "max_steps": jnp.asarray(max_steps, jnp.int32),
            "residual": jnp.sqrt(last.rr),
        }
        return end.x, outcome, stats


def _precondition(
    m: Operator | None, r: Params, rr: Array, like: Params
) -> tuple[Params, Array]:
    """Returns z = M r and rᵀz."""
    if m is None:
        return r, rr
    r = cast_like(r, like)
    z = precondition(m, r)
    return z, dot(r, z)


def _step(
    m: Operator | None, system: System, goals: Goals, max_steps: int, now: _Iterate
) -> _Iterate:
    """One step, or r = b - A x if the recurrence for r has ended."""
    # Both are in one body, with α = β = 0 for the latter, so that only one product
    # is compiled.
    b, like = system.b, system.like
    old = _Scalars(*now.scalars)
    is_check = (old.is_last > 0) | (old.rr <= goals.aim)
    q = system.product(
        jax.tree.map(
            lambda x, p: lax.select(is_check, x.astype(p.dtype), p), now.x, now.p
        )
    )
    pq = dot(now.p, q)
    # A curvature this small, relative to the largest, is rounding.
    is_flat = pq <= jnp.finfo(pq.dtype).eps * old.top * old.pp
    is_step = ~is_check & ~is_flat & jnp.isfinite(pq)
    zero, one = jnp.zeros_like(pq), jnp.ones_like(pq)
    alpha = lax.select(is_step, old.rho / lax.select(is_step, pq, one), zero)
    weight = lax.select(is_check, one, alpha)
    r = jax.tree.map(lambda b, r: lax.select(is_check, b, r), b, now.r)
    r = axpy(-weight, q, r)

    rr = dot(r, r)
    z, rho = _precondition(m, r, rr, like)
    beta = lax.select(is_step, rho / lax.select(old.rho > 0, old.rho, one), zero)
    top = jnp.maximum(old.top, jnp.abs(pq / old.pp))
    steps = now.steps + (~is_check).astype(now.steps.dtype)
    is_indefinite = (old.is_indefinite > 0) | (~is_check & is_flat)
    is_last = is_indefinite | (steps >= max_steps) | _is_bad(rr, rho)
    # If a check does not halve the true residual, no later one will.
    is_stalled = rr > 0.25 * old.checked
    is_enough = (old.is_last > 0) | (rr <= goals.accepted)
    scalars = _Scalars(
        rr=rr,
        rho=rho,
        pp=rho + beta**2 * old.pp,  # as zᵀM⁻¹p = rᵀp = 0
        checked=lax.select(is_check, rr, old.checked),
        top=lax.select(is_check, old.top, top),
        is_indefinite=is_indefinite,
        is_last=is_last,
        is_done=is_check & (is_stalled | is_enough),
    )
    return _Iterate(
        x=axpy(alpha, now.p, now.x),
        r=r,
        p=cast_like(axpy(beta, now.p, widen(z)), like),
        scalars=scalars.stacked(),
        steps=steps,
    )


def _goes_on(now: _Iterate) -> Array:
    scalars = _Scalars(*now.scalars)
    return (scalars.is_done == 0) & jnp.isfinite(scalars.rr)


def _is_bad(rr: Array, rho: Array) -> Array:
    """Whether the preconditioner is not positive definite: rᵀMr <= 0 < rᵀr."""
    return (rho <= 0) & (rr > 0)
