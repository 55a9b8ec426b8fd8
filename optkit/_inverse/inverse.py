"""The inverse (C + λI)⁻¹ as an operator: a curvature and a method, brought together.

What the curvature is and how its inverse acts are different objects. `invert` makes one
of the two and factorises once.

Derivatives of P x do not go through the method. They are those of the exact inverse,
dx = P (db - dA x), with P for every inverse in it, so they cost one more product.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import Check
from .._curvature.base import AbstractCurvature, unknown_diagonal
from .._curvature.damped import Damped
from .._results import RESULTS
from .._types import Params
from .._vector import common_dtype, constant, from_vector, to_vector
from .adapter import as_method
from .base import (
    AbstractExplicitInverse,
    AbstractInverse,
    raise_if_failed,
    with_derivative_of,
)


class Inverse(AbstractCurvature):
    """P = (C + λI)⁻¹, factorised once, for many right-hand sides: `ok.invert` makes it.

    Arrays are leaves and the rest is static, so P crosses `jax.jit`, whatever
    method it is made with. P x is differentiable in x, in λ and in the leaves of C.

    Attributes:
        operator: C + λI.
        solver: the method; a solver of Lineax's is wrapped.
        factor: what the method keeps.
    """

    operator: lx.AbstractLinearOperator
    solver: AbstractInverse
    factor: PyTree
    maker: ClassVar[str] = "ok.invert"

    @property
    def is_psd(self) -> bool:
        """Whether C is known to be."""
        return lx.is_positive_semidefinite(self.operator)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.operator.in_structure()

    def product(self, vector: Params) -> Params:
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
        self.check_vector("solve", vector)
        if not jax.tree.leaves(vector):
            return lx.Solution(vector, RESULTS.successful, {}, self.factor)
        solution = lx.linear_solve(
            self.operator,
            vector,
            constant(self.solver),
            state=(self.operator, self.factor),
            throw=False,
        )
        stats = dict(solution.stats)
        outcome = stats.pop("outcome")
        is_fine = outcome == RESULTS.successful
        result = RESULTS.where(is_fine, RESULTS.promote(solution.result), outcome)
        return lx.Solution(solution.value, result, stats, solution.state)

    def diagonal(self) -> Params:
        """The diagonal of P, for methods that know it."""
        solver = self.solver
        if not isinstance(solver, AbstractExplicitInverse):
            raise unknown_diagonal(f"an inverse by `{type(solver).__name__}`", "P")
        known = solver.diagonal(self.operator, self.factor)
        return raise_if_failed(known, self.operator, self.factor)

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
        check, size = Check("ok.invert(...).entry"), self.in_size()
        a, b = check.index("a", a, size), check.index("b", b, size)
        a, b = jnp.broadcast_arrays(a, b)
        if not isinstance(self.solver, AbstractExplicitInverse):
            return _entry_by_solve((self, a, b))
        known = self.solver.entry(self.operator, self.factor, a, b)
        entries = with_derivative_of(_entry_by_solve, (self, a, b), known)
        return raise_if_failed(entries, self.operator, self.factor)


@lx.linearise.register(Inverse)
def _(operator: Inverse) -> lx.AbstractLinearOperator:
    return operator  # a factor may belong to the class of C


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
    check = Check("ok.invert")
    check.method(solver=solver)
    check.symmetric(curvature)
    check.non_negative(damping=damping)
    operator, method = Damped(curvature, damping), as_method(solver)
    _, factor = method.init(constant(operator), {})
    return Inverse(operator, method, factor)


def check_inverse(check: Check, inverse: Any) -> None:
    """Raises a `TypeError` unless `ok.invert` made it."""
    wanted = "what `ok.invert(C, method, damping=...)` returns"
    check.instance(Inverse, wanted, inverse=inverse)


def _entry_by_solve(inputs: tuple[Inverse, Array, Array]) -> Array:
    """e_aᵀ P e_b by one solve for each pair."""
    inverse, a, b = inputs
    structure = inverse.in_structure()
    zeros = jnp.zeros(inverse.in_size(), common_dtype(structure))

    def entry(a: Array, b: Array) -> Array:
        unit = zeros.at[b].set(1, mode="drop")
        column = to_vector(inverse.mv(from_vector(unit, structure)))
        is_here = (a >= 0) & (a < zeros.size) & (b >= 0) & (b < zeros.size)
        return jnp.where(is_here, column[a], jnp.nan)

    return jax.vmap(entry)(a.reshape(-1), b.reshape(-1)).reshape(a.shape)
