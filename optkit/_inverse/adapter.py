"""Lineax solvers as methods that do not depend on scale and report failure."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import lineax as lx
import optax

from .._results import RESULTS, first_failure
from .._types import Params
from .._vector import (
    all_finite,
    cast_like,
    gathered,
    narrowest_eps,
    norm,
    normalised,
    place_like,
    scale,
    subtract,
    widen,
)
from .base import AbstractInverse, Operator, Solved
from .portable import Portable

_ITERATIVE = (lx.CG, lx.BiCGStab, lx.GMRES, lx.LSMR)


class Adapted(AbstractInverse):
    """A Lineax solver.

    b is scaled to norm one, so an absolute tolerance becomes relative. The true
    residual |b - A x| / |b| is compared with the solver's tolerance, unless the solver
    may return a least-squares solution.
    """

    solver: Portable = eqx.field(repr=False)
    is_exact: bool = eqx.field(static=True, repr=False)
    lineax: str = eqx.field(static=True)  # what `repr` shows
    needs_symmetric: ClassVar[bool] = False

    def __init__(self, solver: lx.AbstractLinearSolver, is_exact: bool) -> None:
        self.solver, self.is_exact = Portable(solver), is_exact
        self.lineax = repr(solver)

    def factorise(self, operator: Operator) -> Portable:
        """The solver's state."""
        return Portable(self.solver.value.init(operator, {}))

    def apply(self, operator: Operator, factor: Portable, vector: Params) -> Solved:
        """Solves, and checks the residual."""
        solver = self.solver.value
        b, size = normalised(vector)
        right = gathered(cast_like(b, vector))
        x, result, stats = solver.compute(factor.value, right, {})
        x = place_like(x, vector)
        residual = norm(subtract(b, widen(operator.mv(cast_like(x, vector)))))
        inexact = RESULTS.inexact_solve
        outcome = first_failure(
            (~jnp.isfinite(size), RESULTS.nonfinite_input),
            (~all_finite(x), RESULTS.singular_matrix),
            (result != lx.RESULTS.successful, RESULTS.promote(result)),
            (self.is_exact & ~(residual <= _allowed(solver, vector)), inexact),
        )
        x = cast_like(scale(size, widen(x)), vector)
        return x, outcome, {**stats, "residual": residual}


def as_method(
    solver: lx.AbstractLinearSolver, *, is_exact: bool = True
) -> AbstractInverse:
    """Wraps a Lineax solver, unless it is a method already."""
    return solver if isinstance(solver, AbstractInverse) else Adapted(solver, is_exact)


def _allowed(solver: lx.AbstractLinearSolver, vector: Params) -> float:
    """The largest residual to accept, for a b of norm one."""
    tolerance = 0.0
    if isinstance(solver, _ITERATIVE):
        # Lineax compares its tolerances with the largest entry.
        root = optax.tree.size(vector) ** 0.5
        tolerance = 10 * (float(solver.rtol) + float(solver.atol) * root)
    return max(tolerance, narrowest_eps(vector) ** 0.5)
