"""The inverse P = (C + λI)⁻¹ as an operator.

`invert` combines a curvature and a method into one operator, and factorises once.

Derivatives of P x do not go through the method. They are those of the exact inverse,
dx = P (db - dA x), with P in place of each inverse, so they cost one more product.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import lineax as lx
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree

from .._check import Check
from .._curvature.base import AbstractCurvature, unknown_diagonal
from .._curvature.damped import Damped
from .._results import RESULTS, gives_nan, raise_failure
from .._types import Params
from .._vector import common_dtype, constant, from_vector, place_like, to_vector
from .adapter import as_method
from .base import (
    AbstractExplicitInverse,
    AbstractInverse,
    raise_if_failed,
    with_derivative_of,
)
from .portable import Leaves, OnLeaves, Portable

WANTED = "what `ok.invert(C, method, damping=...)` returns"


class Inverse(AbstractCurvature):
    """P = (C + λI)⁻¹, factorised once, for many right-hand sides. Made by `ok.invert`.

    Arrays are leaves and the rest is static, so you can pass P to a jitted function.
    The product P x is differentiable in x, in λ and in the leaves of C.

    Attributes:
        operator: C + λI.
        solver: the method; a Lineax solver is wrapped.
        factor: what the method stores.
    """

    operator: lx.AbstractLinearOperator
    solver: AbstractInverse
    factor: PyTree
    maker: ClassVar[str] = "ok.invert"

    @property
    def is_psd(self) -> bool:
        """Whether C is known to be positive semidefinite."""
        return lx.is_positive_semidefinite(self.operator)

    def in_structure(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The structure of the params."""
        return self.operator.in_structure()

    def product(self, vector: Params) -> Params:
        """P x; a failed solve raises the text of its `ok.RESULTS`. See `solve`."""
        if not jax.tree.leaves(vector):
            return vector  # no array to carry an error
        if not gives_nan():
            solution = self.solve(vector)
            return raise_failure(solution.result, solution.value)
        # Lineax's rule would check each derivative for the whole batch.
        solver = constant(self.solver)

        def solve(_: Any, b: Params) -> Params:
            x, outcome, _ = solver.apply(self.operator, self.factor, b)
            return raise_failure(outcome, x)

        def product(v: Params) -> Params:
            return _tied(self.operator.mv(v))

        b = _tied(vector)
        return lax.custom_linear_solve(product, b, solve, symmetric=True)

    def solve(self, vector: Params) -> lx.Solution:
        """Returns P x and how the solve went; a failure does not raise.

        The solution has a `value`, like the vector; a `result`, an item of `ok.RESULTS`
        with text `ok.RESULTS[result]`; and `stats`, the statistics of the method.
        """
        self.check_vector("solve", vector)
        if not jax.tree.leaves(vector):
            return lx.Solution(vector, RESULTS.successful, {}, self.factor)
        leaves, treedef = jax.tree.flatten(vector)
        solution = lx.linear_solve(
            Leaves(self.operator),
            leaves,
            OnLeaves(constant(self.solver)),
            state=Portable((self.operator, self.factor)),
            throw=False,
        )
        stats = dict(solution.stats)
        outcome = stats.pop("outcome")
        is_fine = outcome == RESULTS.successful
        result = RESULTS.where(is_fine, RESULTS.promote(solution.result), outcome)
        # Lineax forgets explicit shardings.
        value = place_like(treedef.unflatten(solution.value), vector)
        return lx.Solution(value, result, stats, solution.state.value)

    def diagonal(self) -> Params:
        """The diagonal of P, if the method knows it."""
        solver = self.solver
        if not isinstance(solver, AbstractExplicitInverse):
            raise unknown_diagonal(f"an inverse by `{type(solver).__name__}`", "P")
        known = solver.diagonal(self.operator, self.factor)
        return raise_if_failed(known, self.operator, self.factor)

    def entry(self, a: ArrayLike, b: ArrayLike) -> Float[Array, "..."]:
        """Returns entries P_ab, for integers a and b whose shapes broadcast.

        Coordinates count as in `as_matrix()`: leaf after leaf in the order of
        `jax.tree.leaves`, each in C order, from 0. An index out of range raises an
        `IndexError`, or gives NaN if it is traced. If the method does not know its
        entries, each one costs a solve.
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
    return operator  # the factor may need the class of C


def invert(
    curvature: lx.AbstractLinearOperator,
    solver: lx.AbstractLinearSolver,
    *,
    damping: Any = 0.0,
) -> Inverse:
    """Returns the inverse P = (C + λI)⁻¹ as an `ok.Inverse`, factorised once.

    `jax.vmap(P.mv)` solves for many x at once. P can be built inside a jitted function
    or passed to one.

    Args:
        curvature: C, any symmetric Lineax operator on real floating leaves.
        solver: how to invert: `ok.CG`, `ok.Neumann`, `ok.Nystrom`, `ok.Woodbury`, or
            any Lineax solver. Solvers that factorise a matrix, such as `lx.Cholesky()`,
            form it densely and may need a tag:
            `lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)`.
        damping: λ >= 0, absolute, added to the curvature of the MEAN loss.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> C = ok.LowRank(jnp.array([[1.0, 1.0]]))
        >>> P = ok.invert(C, ok.Woodbury(), damping=2.0)
        >>> P.mv(jnp.array([1.0, 1.0])).round(3)
        Array([0.25, 0.25], dtype=float32)
    """
    check = Check("ok.invert")
    check.method(solver=solver)
    check.symmetric(curvature, "curvature")
    check.non_negative(damping=damping)
    operator = Damped(curvature, damping)
    # `lx.SVD()` and alike solve singular systems by least squares.
    method = as_method(solver, is_exact=solver.assume_full_rank())
    _, factor = method.init(constant(operator), {})
    return Inverse(operator, method, factor)


def precondition(m: lx.AbstractLinearOperator, r: Params) -> Params:
    """M r; an inverse that fails does not raise, as an approximation is enough."""
    return m.solve(r).value if isinstance(m, Inverse) else m.mv(r)


# JAX transposes a solve only if every leaf of its right-hand side is linear in what is
# perturbed.
def _tied(tree: Params) -> Params:
    """The tree, with every leaf made to depend on all leaves."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1:
        return tree
    terms = [jnp.sum(0 * leaf).astype(jnp.float32) for leaf in leaves]
    zero = sum(terms, jnp.zeros((), jnp.float32))
    return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)


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
