"""A solver of Lineax's as a method: at any scale of b, and never silent."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, PyTree

from .._results import RESULTS, first_failure
from .._types import Params
from .._vector import all_finite, cast_like, norm, normalised, scale, subtract, widen
from .base import AbstractInverse, Solved

_ITERATIVE = (lx.CG, lx.BiCGStab, lx.GMRES, lx.LSMR)


class Adapted(AbstractInverse):
    """A solver of Lineax's.

    b is scaled to norm one, so that an absolute tolerance is relative, and the true
    residual |b - A x| / |b| is compared with what was asked of the solver.

    Args:
        solver: Lineax's.
    """

    solver: "Portable"
    needs_symmetric: ClassVar[bool] = False

    def __init__(self, solver: lx.AbstractLinearSolver) -> None:
        self.solver = Portable(solver)

    def factorise(self, operator: lx.AbstractLinearOperator) -> "Portable":
        """The solver's state."""
        return Portable(self.solver.value.init(operator, {}))

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: "Portable", vector: Params
    ) -> Solved:
        """Solves, and looks at how it went."""
        solver = self.solver.value
        b, size = normalised(vector)
        x, result, stats = solver.compute(factor.value, cast_like(b, vector), {})
        residual = norm(subtract(b, widen(operator.mv(cast_like(x, vector)))))
        outcome = first_failure(
            (~jnp.isfinite(size), RESULTS.nonfinite_input),
            (~all_finite(x), RESULTS.singular_jacobian),
            (result != lx.RESULTS.successful, RESULTS.promote(result)),
            (~(residual <= _allowed(solver, vector)), RESULTS.inexact_backward),
        )
        x = cast_like(scale(size, widen(x)), vector)
        return x, outcome, {**stats, "residual": residual}


def as_method(solver: lx.AbstractLinearSolver) -> AbstractInverse:
    """The solver as a method of ours, if it is none."""
    return solver if isinstance(solver, AbstractInverse) else Adapted(solver)


class Portable(eqx.Module):
    """Any pytree, in a form that crosses `jax.jit`: what is no array is static.

    Lineax keeps lists in its states' static fields, which have no hash.
    """

    arrays: list[Array]
    rest: "_Static" = eqx.field(static=True)

    def __init__(self, value: PyTree) -> None:
        leaves, treedef = jax.tree.flatten(value)
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        pairs = list(zip(leaves, is_array, strict=True))
        self.arrays = [jnp.asarray(leaf) for leaf, yes in pairs if yes]
        self.rest = _Static([None if yes else (leaf,) for leaf, yes in pairs], treedef)

    @property
    def value(self) -> Any:
        """The pytree."""
        arrays = iter(self.arrays)
        leaves = [next(arrays) if x is None else x[0] for x in self.rest.leaves]
        return self.rest.treedef.unflatten(leaves)


class _Static:
    """The part of a pytree that is not arrays: compared by value, whatever it holds."""

    def __init__(self, leaves: list[Any], treedef: Any) -> None:
        self.leaves, self.treedef = leaves, treedef

    def __hash__(self) -> int:
        return hash(self.treedef.num_leaves)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Static)
            and self.treedef == other.treedef
            and self.leaves == other.leaves
        )


def _allowed(solver: lx.AbstractLinearSolver, vector: Params) -> float:
    """The residual that a solver may leave of a b of norm one."""
    leaves = jax.tree.leaves(vector)
    eps = max([float(jnp.finfo(leaf).eps) for leaf in leaves])
    size = sum(leaf.size for leaf in leaves)
    asked = 0.0
    if isinstance(solver, _ITERATIVE):
        # Its tolerances are for the largest entry.
        asked = 10 * (float(solver.rtol) + float(solver.atol) * size**0.5)
    return max(asked, eps**0.5)
