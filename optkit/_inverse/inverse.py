"""The inverse (C + λI)⁻¹ as an operator: a curvature and a method, brought together.

What the curvature is and how its inverse acts are different objects. `invert` makes one
of the two and factorises once.

Derivatives of P x do not go through the method. They are those of the exact inverse,
dx = P (db - dA x), with P for every inverse in it, so they cost one more product.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import (
    check_index,
    check_non_negative,
    check_vector,
)
from .._curvature.base import (
    AbstractCurvature,
    Damped,
    check_symmetric,
)
from .._results import RESULTS
from .._types import Params
from .._vector import (
    constant,
    from_vector,
    to_vector,
)
from .base import (
    AbstractExplicitInverse,
    AbstractInverse,
    fit_for_use,
    with_derivative_of,
)


class Inverse(AbstractCurvature):
    """P = (C + λI)⁻¹, factorised once, for many right-hand sides: `ok.invert` makes it.

    Arrays are leaves and the rest is static, so P crosses `jax.jit`, whatever
    method it is made with. P x is differentiable in x, in λ and in the leaves of C.
    """

    arrays: list[Array]
    rest: "_Static" = eqx.field(static=True)

    def __init__(
        self, operator: lx.AbstractLinearOperator, solver: Any, factor: PyTree
    ) -> None:
        leaves, treedef = jax.tree.flatten((operator, solver, factor))
        is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        pairs = list(zip(leaves, is_array, strict=True))
        self.arrays = [jnp.asarray(leaf) for leaf, yes in pairs if yes]
        self.rest = _Static([None if yes else (leaf,) for leaf, yes in pairs], treedef)

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """C + λI."""
        return self._parts()[0]

    @property
    def solver(self) -> lx.AbstractLinearSolver:
        """The method."""
        return self._parts()[1]

    @property
    def factor(self) -> PyTree:
        """What the method keeps; for a solver of Lineax's, its state."""
        return self._parts()[2]

    @property
    def is_psd(self) -> bool:
        """Whether C is known to be."""
        return lx.is_positive_semidefinite(self.operator)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.operator.in_structure()

    def mv(self, vector: Params) -> Params:
        """P x; a solve that fails raises the text of its `ok.RESULTS`.

        Inside a jitted step that must not fail, `solve` reports instead.

        Returns:
            A pytree like the params.
        """
        solution = self.solve(vector)
        if not jax.tree.leaves(solution.value):
            return solution.value  # no array that could carry an error
        failed = solution.result != RESULTS.successful
        return solution.result.error_if(solution.value, failed)

    def solve(self, vector: Params) -> lx.Solution:
        """P x, and how the solve went.

        Args:
            vector: a pytree like the params.

        Returns:
            `value`; `result`, an item of `ok.RESULTS`, whose text is
            `ok.RESULTS[result]`; and `stats`, what the method counts.

        Raises:
            ValueError: for a vector of another structure or shape than the params.
            TypeError: for one of another dtype.
        """
        operator, solver, factor = self._parts()
        check_vector("ok.Inverse.mv", vector, operator.in_structure())
        if not jax.tree.leaves(vector):
            return lx.Solution(vector, RESULTS.successful, {}, factor)
        is_ours = isinstance(solver, AbstractInverse)
        solution = lx.linear_solve(
            operator,
            vector,
            constant(solver),
            state=(operator, factor) if is_ours else factor,
            throw=False,
        )
        result = RESULTS.promote(solution.result)
        stats = dict(solution.stats)
        if "outcome" in stats:  # of a method of ours
            outcome = stats.pop("outcome")
            fine = outcome == RESULTS.successful
            result = RESULTS.where(fine, result, outcome)
        return lx.Solution(solution.value, result, stats, solution.state)

    def diagonal(self) -> Params:
        """The diagonal of P, for methods that know it."""
        operator, solver, factor = self._parts()
        if isinstance(solver, AbstractExplicitInverse):
            return fit_for_use(solver.diagonal(operator, factor), operator, factor)
        raise NotImplementedError(
            f"The diagonal of an inverse by `{type(solver).__name__}` is not known "
            f"without its matrix. Estimate it with `ok.hutchinson_diag(P, key=key, "
            f"num_probes=...)`, or for a small problem take "
            f"`jnp.diagonal(P.as_matrix())`."
        )

    def entry(self, a: ArrayLike, b: ArrayLike) -> Float[Array, "..."]:
        """Entries (a, b) of P.

        Coordinates are counted as in `as_matrix()`: leaf after leaf in the order of
        `jax.tree.leaves`, each in C order, from 0.

        Args:
            a: integers, traced or not, of any shape.
            b: integers of a shape that broadcasts with it.

        Returns:
            P_ab in the broadcast shape, NaN for a traced index out of range. Costs
            one solve for each entry where the method does not know its entries.

        Raises:
            IndexError: for an index out of range that is not traced.
            TypeError: for indices that are not integers.
        """
        operator, solver, factor = self._parts()
        a = check_index("ok.Inverse.entry", "a", a, operator.in_size())
        b = check_index("ok.Inverse.entry", "b", b, operator.in_size())
        a, b = jnp.broadcast_arrays(a, b)
        if isinstance(solver, AbstractExplicitInverse):
            known = solver.entry(operator, factor, a, b)
            entries = with_derivative_of(_entry_by_solve, (self, a, b), known)
            return fit_for_use(entries, operator, factor)
        return _entry_by_solve((self, a, b))

    def _parts(self) -> tuple[lx.AbstractLinearOperator, Any, PyTree]:
        arrays = iter(self.arrays)
        leaves = [next(arrays) if x is None else x[0] for x in self.rest.leaves]
        return self.rest.treedef.unflatten(leaves)


def invert(
    curvature: lx.AbstractLinearOperator,
    solver: lx.AbstractLinearSolver,
    *,
    damping: Any = 0.0,
) -> Inverse:
    """The inverse P = (C + λI)⁻¹ as an operator, factorised here, once.

    With P x for many x, `jax.vmap(P.mv)` solves them together. To build P within a
    step, do it inside the jitted function; P may also be passed to one.

    Args:
        curvature: C, any symmetric Lineax operator on real floating leaves.
        solver: how to invert: `ok.CG`, `ok.Neumann`, `ok.Nystrom`, `ok.Woodbury`, or
            any Lineax solver. Those that factorise a matrix, such as `lx.Cholesky()`,
            hold it dense, and it must be tagged as they ask:
            `lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)`.
        damping: λ >= 0, absolute, added to the curvature of the MEAN loss.

    Returns:
        An `ok.Inverse`.

    Raises:
        ValueError: for a negative damping, an operator not known to be symmetric, or
            one that the method cannot invert.
        TypeError: for something that is not an operator or not a solver.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> P.mv(jnp.array([1.0, 1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)
    """
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise TypeError(
            f"`ok.invert` needs a method such as `ok.CG()` or `lx.Cholesky()`, got "
            f"{solver!r}."
        )
    check_symmetric("ok.invert", curvature)
    check_non_negative("ok.invert", "damping", damping)
    operator = Damped(curvature, damping)
    if isinstance(solver, AbstractInverse):
        factor = solver.factorise(constant(operator))
    else:
        factor = solver.init(constant(operator), {})
    return Inverse(operator, solver, factor)


def check_inverse(call: str, inverse: Any) -> None:
    """Raises a `TypeError` for what `ok.invert` did not make."""
    if not isinstance(inverse, Inverse):
        raise TypeError(
            f"`{call}` needs an inverse, as `ok.invert(C, method, damping=...)` makes "
            f"it, got {type(inverse).__name__}."
        )


def _entry_by_solve(inputs: tuple[Inverse, Array, Array]) -> Array:
    """e_aᵀ P e_b by one solve for each pair."""
    inverse, a, b = inputs
    structure = inverse.in_structure()
    zeros = to_vector(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), structure))

    def entry(a: Array, b: Array) -> Array:
        unit = zeros.at[b].set(1, mode="drop")
        column = to_vector(inverse.mv(from_vector(unit, structure)))
        is_here = (a >= 0) & (a < zeros.size) & (b >= 0) & (b < zeros.size)
        return jnp.where(is_here, column[a], jnp.nan)

    return jax.vmap(entry)(a.reshape(-1), b.reshape(-1)).reshape(a.shape)


class _Static:
    """The part of a pytree that is not arrays: compared by value, whatever it holds.

    Lineax keeps lists in its states' static fields, which have no hash.
    """

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
