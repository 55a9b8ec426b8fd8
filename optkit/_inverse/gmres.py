"""GMRES that does not depend on scale and reports failure."""

from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, PyTree

from .._check import Check
from .._results import RESULTS, first_failure
from .._types import Params
from .._vector import (
    add,
    cast_like,
    combine,
    norm,
    project,
    scale,
    subtract,
    where,
    widen,
    zero_rows,
    zeros_like,
)
from .base import AbstractIterative, Operator, Solved, System
from .inverse import precondition

_SMALL = 100  # coordinates


class _Cycle(NamedTuple):
    """A V = V H and Q H = R between two restarts, in float32 or wider."""

    V: PyTree  # m + 1 orthonormal rows, zero from row k + 1 on
    Q: Array  # the rotations so far, (m + 1, m + 1)
    R: Array  # upper triangular, (m + 1, m)
    k: Array
    norm: Array  # the smallest residual over the rows so far, by recurrence
    is_finite: Array
    is_over: Array  # whether the rows span an invariant space


class GMRES(AbstractIterative):
    """Restarted GMRES, for any square operator, matrix-free.

        min_x |b - A x|    over x in x_0 + span{r_0, A r_0, ..., Aᵐ⁻¹ r_0}

    restarted from its minimiser until |b - A x| <= rtol |b|, by the true residual. Use
    it for the Jacobians of roots and fixed points, where `ok.CG` does not apply. Unlike
    `lx.GMRES`, it has no absolute tolerance, so the relative error does not depend on
    the scale of b; leaves may have different dtypes, and all that is kept is in float32
    or wider; and rows are orthogonalised twice, so they stay orthogonal to rounding.

    It is exact, to rounding, in as many steps as there are coordinates, if `restart`
    allows. It costs one product per step and per restart, and the memory of m + 1
    vectors. The number of steps grows with the condition number of A if its eigenvalues
    surround the origin. It is small if they cluster, as those of I - ∂T do for a
    contraction T.

    `options` of `lx.linear_solve` may hold a starting point `y0`, which saves steps but
    does not change the tolerance, and a `preconditioner` M ≈ A⁻¹: A M u = b, x = M u.

    `stats` has `num_steps`, `max_steps`, and `residual`, the true |b - A x| / |b|.

    Args:
        rtol: as for `ok.CG`, except that the default accepts up to √eps only if the
            condition number of A appears to be below 1 / (100 eps).
        restart: m, the number of vectors to keep. Default 30, or all of them for up to
            100 coordinates.
        max_steps: default ten times the number of coordinates.

    Example:
        >>> import jax.numpy as jnp, lineax as lx, optkit as ok
        >>> A = lx.MatrixLinearOperator(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
        >>> x = lx.linear_solve(A, jnp.array([4.0, 1.0]), ok.GMRES()).value
        >>> print(x.round(4))
        [2. 1.]

    Reference:
        Saad and Schultz 1986, algorithm 4.
    """

    rtol: Any
    restart: int | None = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    needs_symmetric: ClassVar[bool] = False
    options: ClassVar[frozenset[str]] = frozenset({"y0", "preconditioner"})

    def __init__(
        self, rtol: Any = None, restart: int | None = None, max_steps: int | None = None
    ) -> None:
        check = Check("ok.GMRES").optional
        check.positive(rtol=rtol)
        check.count(restart=restart, max_steps=max_steps)
        self.rtol, self.restart, self.max_steps = rtol, restart, max_steps

    def factorise(self, operator: Operator) -> PyTree:
        """Nothing to do."""
        del operator
        return None

    def iterate(self, system: System, factor: PyTree) -> Solved:
        """Cycles from x = 0; the factor is a preconditioner M or None: x = M u."""
        if factor is not None:
            product = system.product

            def preconditioned(u: Params) -> Params:
                return widen(precondition(factor, cast_like(u, system.like)))

            system = system._replace(product=lambda u: product(preconditioned(u)))
            u, outcome, stats = self.iterate(system, None)
            return preconditioned(u), outcome, stats
        b, (aim, wanted, accepted) = system.b, system.goals(self.rtol)
        max_steps, n = system.max_steps(self.max_steps), system.num_coordinates
        restart = min(self.restart or (30 if n > _SMALL else n), n)

        def go_on(carry: Any) -> Array:
            _, _, norm, steps, _, is_enough, is_stalled = carry
            is_fine = jnp.isfinite(norm) & ~is_enough & ~is_stalled
            return (norm > wanted) & (steps < max_steps) & is_fine

        def cycle(carry: Any) -> Any:
            x, r, before, steps, is_regular, _, _ = carry
            end = _cycle(system.product, r, before, aim, restart, max_steps - steps)
            step, is_regular_now = _minimiser(end, before)
            y = add(x, step)
            r = subtract(b, system.product(y))
            after = norm(r)
            is_worse = after > before
            x, after = where(is_worse, (x, before), (y, after))
            is_regular &= is_regular_now
            is_enough = (end.norm <= aim) & (after <= accepted) & is_regular
            is_stalled = (after > 0.999 * before) | ~end.is_finite
            return x, r, after, steps + end.k, is_regular, is_enough, is_stalled

        steps, no = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
        first = (zeros_like(b), b, system.size, steps, ~no, no, no)
        end = lax.while_loop(go_on, cycle, first)
        x, _, residual, steps, _, is_enough, is_stalled = end
        outcome = first_failure(
            (~jnp.isfinite(residual), RESULTS.nonfinite_operator),
            ((residual <= wanted) | is_enough, RESULTS.successful),
            (is_stalled, RESULTS.stalled),
            (steps >= max_steps, RESULTS.max_steps_reached),
        )
        stats = {
            "num_steps": steps,
            "max_steps": jnp.asarray(max_steps, jnp.int32),
            "residual": residual,
        }
        return x, outcome, stats


def _cycle(
    product: Any, r: Params, size: Array, aim: Array, m: int, max_steps: Array
) -> _Cycle:
    """At most m steps of Arnoldi's process, with the factors of H = QᵀR."""
    dtype = size.dtype

    def go_on(now: _Cycle) -> Array:
        is_fine = now.is_finite & ~now.is_over
        return (now.k < jnp.minimum(m, max_steps)) & (now.norm > aim) & is_fine

    def step(now: _Cycle) -> _Cycle:
        w = product(jax.tree.map(lambda v: v[now.k], now.V))
        before = norm(w)
        # Gram-Schmidt, twice. Rows from k + 1 on are zero.
        h = project(now.V, w)
        w = subtract(w, combine(h, now.V))
        h_again = project(now.V, w)
        w = subtract(w, combine(h_again, now.V))
        beta = norm(w)
        is_over = beta <= 10 * jnp.finfo(dtype).eps * before
        beta = jnp.where(is_over, 0, beta)
        w = scale(jnp.where(is_over, 0, 1 / beta), w)
        column = now.Q @ (h + h_again).at[now.k + 1].set(beta)
        top = column[now.k]
        length = jnp.sqrt(top**2 + beta**2)
        c, s = jnp.where(length > 0, jnp.stack([top, beta]) / length, 0)
        q, q_next = now.Q[now.k], now.Q[now.k + 1]
        Q = now.Q.at[now.k].set(c * q + s * q_next)
        Q = Q.at[now.k + 1].set(c * q_next - s * q)
        kept = jnp.arange(m + 1, dtype=jnp.int32) < now.k
        R = now.R.at[:, now.k].set(jnp.where(kept, column, 0).at[now.k].set(length))
        return _Cycle(
            V=jax.tree.map(lambda v, a: v.at[now.k + 1].set(a), now.V, w),
            Q=Q,
            R=R,
            k=now.k + 1,
            norm=jnp.abs(Q[now.k + 1, 0]) * size,
            is_finite=jnp.isfinite(before),
            is_over=is_over,
        )

    def first_row(rows: Array, a: Array) -> Array:
        return rows.at[0].set(a / jnp.where(size > 0, size, 1).astype(a.dtype))

    first = _Cycle(
        V=jax.tree.map(first_row, zero_rows(m + 1, r), r),
        Q=jnp.eye(m + 1, dtype=dtype),
        R=jnp.zeros((m + 1, m), dtype),
        k=jnp.zeros((), jnp.int32),
        norm=size,
        is_finite=jnp.ones((), bool),
        is_over=jnp.zeros((), bool),
    )
    return lax.while_loop(go_on, step, first)


def _minimiser(end: _Cycle, size: Array) -> tuple[Params, Array]:
    """Returns Vᵀy with R y = Q e_1 |r|, from steps that are not singular.

    Also returns whether R is regular: one step of inverse iteration from y puts its
    condition number below 1 / (100 eps).
    """
    R = end.R[:-1]
    eps = jnp.finfo(R.dtype).eps
    diagonal = jnp.abs(jnp.diagonal(R))
    top = jnp.max(diagonal, initial=0)
    top = jnp.where(top > 0, top, 1)
    is_made = jnp.arange(R.shape[0], dtype=jnp.int32) < end.k
    is_used = is_made & (diagonal > eps * top)
    R = jnp.where(
        is_used[:, None] & is_used[None], R, jnp.diag(jnp.where(is_used, 0, top))
    )
    y = solve_triangular(R, jnp.where(is_used, end.Q[:-1, 0] * size, 0))

    w = solve_triangular(R, solve_triangular(R, y / jnp.linalg.norm(y), trans=1))
    least = jnp.linalg.norm(w) ** -0.5
    is_regular = jnp.all(is_used == is_made) & (least > 100 * eps * top)

    y = jnp.where(end.is_finite, y, jnp.nan)
    return combine(y, jax.tree.map(lambda v: v[:-1], end.V)), is_regular
