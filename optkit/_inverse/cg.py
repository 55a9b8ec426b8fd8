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
from .vectors import add, cast_like, check_matrix_free, over_peak, widened


class _Iterate(NamedTuple):
    """One conjugate gradient iterate; x and r are in float32 or wider."""

    x: Params
    r: Params  # b - A x, by recurrence
    p: Params  # search direction, in the params' dtypes
    rr: Array  # rᵀr
    rho: Array  # rᵀz
    checked: Array  # rᵀr when r was last computed as b - A x
    pp: Array  # pᵀM⁻¹p, by recurrence
    top: Array  # the largest curvature pᵀAp / pᵀM⁻¹p so far
    steps: Array
    is_indefinite: Array
    is_done: Array  # r is b - A x, and there is no going on from it


class CG(AbstractInverse):
    """Conjugate gradients, for any positive definite operator, matrix-free.

        α = rᵀz / pᵀAp    x <- x + α p    r <- r - α A p    z = M r
        p <- z + (rᵀz / old rᵀz) p

    until |b - A x| <= rtol |b|, by the true residual: when the recurrence for r has
    converged, b - A x is computed, and if that has not, the method goes on from it, as
    iterative refinement. It differs from `lx.CG` in this, and:

    1. b is scaled by its largest entry and there is no absolute tolerance, so the
       relative error is the same for a loss times 1e-9 and times 1e9;
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
        b, scale = over_peak(vector)
        dtype = scale.dtype
        eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(vector)])
        rtol = jnp.maximum(jnp.asarray(self.rtol, dtype), jnp.asarray(4 * eps, dtype))
        max_steps = self.max_steps or 10 * max(operator.in_size(), 1)

        # Without a single vector of zeros: x = 0 and r = b cost no product.
        bb = dot(b, b)
        target = rtol**2 * bb
        z, rho = self._precondition(b, bb, vector)
        start = _Iterate(
            x=jax.tree.map(jnp.zeros_like, b),
            r=b,
            p=cast_like(z, vector),
            rr=bb,
            rho=rho,
            checked=bb,
            pp=rho,
            top=jnp.zeros((), dtype),
            steps=jnp.zeros((), jnp.int32),
            is_indefinite=jnp.zeros((), bool),
            is_done=bb <= target,
        )
        end = lax.while_loop(
            lambda now: ~now.is_done & jnp.isfinite(now.rr),
            lambda now: self._step(product, b, vector, target, max_steps, now),
            start,
        )

        outcome = first_of(
            (~jnp.isfinite(scale), RESULTS.nonfinite_input),
            (_is_bad(end), RESULTS.bad_preconditioner),
            (~jnp.isfinite(end.rr), RESULTS.nonfinite_operator),
            (end.rr <= target, RESULTS.successful),
            (end.is_indefinite, RESULTS.indefinite),
            (end.steps >= max_steps, RESULTS.max_steps_reached),
            (end.is_done, RESULTS.inaccurate),
        )
        x = jax.tree.map(lambda a: a * scale.astype(a.dtype), end.x)
        stats = {
            "num_steps": end.steps,
            "max_steps": jnp.asarray(max_steps, jnp.int32),
            "residual": jnp.sqrt(end.rr / jnp.where(bb > 0, bb, 1)),
        }
        return cast_like(x, vector), outcome, stats

    def _precondition(self, r: Params, rr: Array, like: Params) -> tuple[Params, Array]:
        """Returns z = M r and rᵀz."""
        m = self.preconditioner
        if m is None:
            return r, rr
        r = cast_like(r, like)
        z = m.solve(r).value if isinstance(m, Inverse) else m.mv(r)
        return z, dot(r, z)

    def _step(
        self,
        product: Any,
        b: Params,
        like: Params,
        target: Array,
        max_steps: int,
        now: _Iterate,
    ) -> _Iterate:
        """One step; or where the recurrence for r has come to an end, b - A x."""
        # Both are in one body, with α = β = 0 for the latter, so that a product is
        # compiled once. The recurrence aims a little lower, to be confirmed.
        has_converged = now.rr <= 0.8 * target
        is_out = now.is_indefinite | _is_bad(now) | (now.steps >= max_steps)
        is_check = has_converged | is_out
        q = product(
            jax.tree.map(
                lambda x, p: jnp.where(is_check, x.astype(p.dtype), p), now.x, now.p
            )
        )
        pq = dot(now.p, q)
        curvature = pq / now.pp
        top = jnp.where(is_check, now.top, jnp.maximum(now.top, jnp.abs(curvature)))
        # A curvature this small beside the largest is rounding.
        is_flat = curvature <= jnp.finfo(pq.dtype).eps * top
        is_step = ~is_check & ~is_flat & jnp.isfinite(pq)
        alpha = jnp.where(is_step, now.rho / jnp.where(is_step, pq, 1), 0)
        r = jax.tree.map(
            lambda b, r, q: (
                jnp.where(is_check, b, r)
                - jnp.where(is_check, 1, alpha).astype(r.dtype) * q.astype(r.dtype)
            ),
            b,
            now.r,
            q,
        )

        rr = dot(r, r)
        z, rho = self._precondition(r, rr, like)
        beta = jnp.where(is_step, rho / jnp.where(now.rho > 0, now.rho, 1), 0)
        # What does not halve the true residual never will.
        is_stalled = rr > 0.25 * now.checked
        return _Iterate(
            x=add(now.x, alpha, now.p),
            r=r,
            p=cast_like(add(widened(z), beta, now.p), like),
            rr=rr,
            rho=rho,
            checked=jnp.where(is_check, rr, now.checked),
            pp=rho + beta**2 * now.pp,  # as zᵀM⁻¹p = rᵀp = 0
            top=top,
            steps=now.steps + jnp.where(is_check, 0, 1),
            is_indefinite=now.is_indefinite | (~is_check & is_flat),
            is_done=is_check & (is_out | is_stalled | (rr <= target)),
        )


def _is_bad(now: _Iterate) -> Array:
    """Whether the preconditioner is not positive definite: rᵀMr <= 0 < rᵀr."""
    return (now.rho <= 0) & (now.rr > 0)
