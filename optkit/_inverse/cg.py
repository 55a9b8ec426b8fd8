"""Conjugate gradients that do not depend on scale, and say when they failed."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, PyTree

from .._check import check_positive, check_positive_int
from .._curvature.base import check_symmetric
from .._tree import dot
from .._types import Params
from .base import AbstractInverse, Inverse
from .results import RESULTS, first_of
from .vectors import add, cast_like, check_matrix_free, normalised, widened


class _Iterate(NamedTuple):
    """One conjugate gradient iterate; x and r are in float32 or wider."""

    x: Params
    r: Params  # b - A x, by recurrence
    p: Params  # search direction, in the params' dtypes
    rho: Array  # rᵀz
    norm: Array  # |r|
    top: Array  # the largest curvature pᵀAp / pᵀp so far
    steps: Array
    is_indefinite: Array
    is_finite: Array
    is_bad: Array  # the preconditioner


class CG(AbstractInverse):
    """Conjugate gradients, for any positive definite operator, matrix-free.

        α = rᵀz / pᵀAp    x <- x + α p    r <- r - α A p    z = M r
        p <- z + (rᵀz / old rᵀz) p

    until |b - A x| <= rtol |b|, by the true residual: when the recurrence for r has
    converged, b - A x is computed, and if that has not, the method goes on from it, as
    iterative refinement. It differs from `lx.CG` in this, and:

    1. b is scaled to norm one and there is no absolute tolerance, so the relative
       error is the same for a loss times 1e-9 and times 1e9;
    2. leaves may have different dtypes. x, r and all scalars are in float32 or wider;
    3. directions of negative curvature, and of zero curvature to rounding, stop the
       method and are reported; the operator need not claim to be positive definite.

    Costs one product a step and one for each residual, about ½ √κ ln(2/rtol) in all,
    κ = (λ_max + λ) / (λ_min + λ): damping is the cheapest way to fewer steps.

    `stats` has `num_steps`, `max_steps`, and `residual`, the true |b - A x| / |b|.

    Args:
        rtol: the relative residual to reach, > 0. Taken as 4 eps of the narrowest
            leaf where that is larger: no residual can be smaller.
        max_steps: None is ten times the number of coordinates.
        preconditioner: M ≈ A⁻¹, a symmetric positive definite operator on the params,
            such as `ok.nystrom_preconditioner(P)`, or an `ok.Inverse`. It changes the
            number of steps, not the solution, and is held constant in derivatives.

    Raises:
        ValueError: for rtol <= 0, max_steps < 1, or a preconditioner that is not
            known to be symmetric.
        TypeError: for a preconditioner that is not an operator.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.hessian(lambda x: jnp.sum(x**2), jnp.zeros(2))
        >>> solution = ok.invert(C, ok.CG(), damping=1.0).solve(jnp.array([3.0, 6.0]))
        >>> print(solution.value, solution.stats["num_steps"])
        [1. 2.] 1

    Reference:
        Hestenes and Stiefel 1952; Shewchuk 1994, appendix B.3.
    """

    rtol: float
    max_steps: int | None
    preconditioner: lx.AbstractLinearOperator | None

    def __init__(
        self,
        rtol: float = 1e-5,
        max_steps: int | None = None,
        preconditioner: lx.AbstractLinearOperator | None = None,
    ) -> None:
        check_positive("ok.CG", "rtol", rtol)
        if max_steps is not None:
            check_positive_int("ok.CG", "max_steps", max_steps)
        if preconditioner is not None:
            check_symmetric("ok.CG(preconditioner=...)", preconditioner)
        self.rtol, self.max_steps = rtol, max_steps
        self.preconditioner = jax.tree.map(
            lambda x: lax.stop_gradient(x) if eqx.is_array(x) else x, preconditioner
        )

    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree:
        """Nothing: checks that the method fits the operator."""
        check_matrix_free("ok.CG", operator)
        m = self.preconditioner
        if m is not None and m.in_structure() != operator.in_structure():
            raise ValueError(
                "`ok.CG` needs a preconditioner on the params of the curvature.\n"
                f"  preconditioner: {m.in_structure()}\n"
                f"  curvature: {operator.in_structure()}"
            )
        return ()

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: PyTree, vector: Params
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Iterates from x = 0."""
        del factor
        product = lx.linearise(operator).mv
        b, scale = normalised(vector)
        dtype = scale.dtype
        eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(vector)])
        rtol = jnp.maximum(jnp.asarray(self.rtol, dtype), jnp.asarray(4 * eps, dtype))
        max_steps = self.max_steps or 10 * max(operator.in_size(), 1)

        def residual(x: Params) -> Params:
            return add(b, -jnp.ones((), dtype), product(cast_like(x, vector)))

        def go_on(carry: tuple[_Iterate, Array]) -> Array:
            now, is_stalled = carry
            return self._unfinished(now, rtol, max_steps) & ~is_stalled

        def refine(carry: tuple[_Iterate, Array]) -> tuple[_Iterate, Array]:
            start, _ = carry
            # The recurrence aims a little lower, to be confirmed by the true residual.
            end = lax.while_loop(
                lambda now: self._unfinished(now, 0.9 * rtol, max_steps),
                lambda now: self._step(product, vector, now),
                start,
            )
            has_converged = end.norm <= 0.9 * rtol
            again = self._start(vector, end.x, residual(end.x), end)
            return again, has_converged & (again.norm > 0.5 * start.norm)

        # Without a single vector of zeros: x = 0 and r = b cost no product.
        zero = jnp.zeros((), dtype)
        first = _Iterate(
            x=jax.tree.map(jnp.zeros_like, b),
            r=b,
            p=cast_like(b, vector),
            rho=zero,
            norm=zero,
            top=zero,
            steps=jnp.zeros((), jnp.int32),
            is_indefinite=jnp.zeros((), bool),
            is_finite=jnp.ones((), bool),
            is_bad=jnp.zeros((), bool),
        )
        first = self._start(vector, first.x, b, first)
        end, is_stalled = lax.while_loop(go_on, refine, (first, jnp.zeros((), bool)))

        outcome = first_of(
            (~jnp.isfinite(scale), RESULTS.nonfinite_input),
            (end.is_bad, RESULTS.bad_preconditioner),
            (~end.is_finite, RESULTS.nonfinite_operator),
            (end.norm <= rtol, RESULTS.successful),
            (end.is_indefinite, RESULTS.indefinite),
            (is_stalled, RESULTS.inaccurate),
            (end.steps >= max_steps, RESULTS.max_steps_reached),
        )
        x = jax.tree.map(lambda a: a * scale.astype(a.dtype), end.x)
        stats = {
            "num_steps": end.steps,
            "max_steps": jnp.asarray(max_steps, jnp.int32),
            "residual": end.norm,
        }
        return cast_like(x, vector), outcome, stats

    def _precondition(self, r: Params) -> Params:
        m = self.preconditioner
        if m is None:
            return r
        return m.solve(r).value if isinstance(m, Inverse) else m.mv(r)

    def _unfinished(self, now: _Iterate, rtol: Array, max_steps: int) -> Array:
        is_fine = now.is_finite & ~now.is_indefinite & ~now.is_bad
        return (now.norm > rtol) & (now.steps < max_steps) & is_fine

    def _start(self, like: Params, x: Params, r: Params, old: _Iterate) -> _Iterate:
        """Points the search along the residual."""
        norm = jnp.sqrt(dot(r, r))
        p = self._precondition(cast_like(r, like))
        rho = norm**2 if self.preconditioner is None else dot(r, p)
        return old._replace(
            x=x, r=r, p=p, rho=rho, norm=norm, is_bad=(rho <= 0) & (norm > 0)
        )

    def _step(self, product: Any, like: Params, now: _Iterate) -> _Iterate:
        q = product(now.p)
        pp, pq = dot(now.p, now.p), dot(now.p, q)
        curvature = pq / pp
        top = jnp.maximum(now.top, jnp.abs(curvature))
        # A curvature this small beside the largest is rounding.
        is_flat = curvature <= jnp.finfo(pq.dtype).eps * top
        is_finite = jnp.isfinite(pq)
        alpha = jnp.where(is_flat | ~is_finite, 0, now.rho / jnp.where(is_flat, 1, pq))
        x, r = add(now.x, alpha, now.p), add(now.r, -alpha, q)

        norm = jnp.sqrt(dot(r, r))
        z = self._precondition(cast_like(r, like))
        rho = norm**2 if self.preconditioner is None else dot(r, z)
        beta = rho / jnp.where(now.rho > 0, now.rho, 1)
        return _Iterate(
            x=x,
            r=r,
            p=cast_like(add(widened(z), beta, now.p), like),
            rho=rho,
            norm=norm,
            top=top,
            steps=now.steps + 1,
            is_indefinite=is_flat,
            is_finite=is_finite,
            is_bad=(rho <= 0) & (norm > 0),
        )
