"""The inverse (C + λI)⁻¹ as an operator, and what a method must know to apply it.

What the curvature is and how its inverse acts are different objects. A method is a
`lineax.AbstractLinearSolver`: Lineax's own work here, and these work in Lineax and
Optimistix. `invert` brings the two together and factorises once:

    A = C + λI      factor = method.factorise(A)      P x = method.apply(A, factor, x)

Derivatives of P x do not go through the method. They are those of the exact inverse,
dx = P (db - dA x), with P for every inverse in it, so they cost one more product.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int, PyTree

from .._check import check_index, check_non_negative, check_vector
from .._curvature.base import AbstractCurvature, Damped, check_symmetric
from .._tree import from_vector, to_vector
from .._types import Params
from .results import NEAREST_IN_LINEAX, RESULTS, all_finite, first_of


class AbstractInverse(lx.AbstractLinearSolver):
    """A method for (C + λI)⁻¹: `factorise` looks at the operator, `apply` at a vector.

    The state that Lineax hands around is the operator and its factor.
    """

    @abc.abstractmethod
    def factorise(self, operator: lx.AbstractLinearOperator) -> PyTree:
        """All the work that does not need a right-hand side.

        Args:
            operator: C + λI, an `ok.Damped` when it comes from `ok.invert`.

        Returns:
            A pytree of arrays.
        """

    @abc.abstractmethod
    def apply(
        self, operator: lx.AbstractLinearOperator, factor: PyTree, vector: Params
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Solves (C + λI) x = b.

        Args:
            operator: as given to `factorise`.
            factor: what it returned.
            vector: b.

        Returns:
            x; an item of `ok.RESULTS`; and statistics.
        """

    def init(
        self, operator: lx.AbstractLinearOperator, options: dict[str, Any]
    ) -> tuple[lx.AbstractLinearOperator, PyTree]:
        """Lineax's name for `factorise`."""
        if options:
            raise ValueError(
                f"`ok.{type(self).__name__}` takes no Lineax options, got "
                f"{sorted(options)}. Pass what it needs to its constructor, such as "
                f"`ok.CG(preconditioner=...)`."
            )
        return operator, self.factorise(operator)

    def compute(
        self,
        state: tuple[lx.AbstractLinearOperator, PyTree],
        vector: Params,
        options: dict[str, Any],
    ) -> tuple[Params, Any, dict[str, Any]]:
        """Lineax's name for `apply`; its results are the nearest of Lineax's."""
        del options
        operator, factor = state
        value, outcome, stats = self.apply(operator, factor, vector)
        result = lx.RESULTS.successful
        for name, nearest in NEAREST_IN_LINEAX.items():
            is_it = outcome == getattr(RESULTS, name)
            result = lx.RESULTS.where(is_it, nearest, result)
        return value, result, {**stats, "outcome": outcome}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, as the operator is symmetric."""
        return state, options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, as the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True: C + λI is invertible or the solve fails."""
        return True


class AbstractExplicitInverse(AbstractInverse):
    """A method whose inverse has known entries."""

    @abc.abstractmethod
    def diagonal(self, operator: lx.AbstractLinearOperator, factor: PyTree) -> Params:
        """The diagonal of (C + λI)⁻¹, differentiable in the operator."""

    @abc.abstractmethod
    def entry(
        self,
        operator: lx.AbstractLinearOperator,
        factor: PyTree,
        a: Int[Array, "..."],
        b: Int[Array, "..."],
    ) -> Float[Array, "..."]:
        """Entries (a, b) of (C + λI)⁻¹; the indices as in `ok.Inverse.entry`."""


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
            _constant(solver),
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
        factor = solver.factorise(_constant(operator))
    else:
        factor = solver.init(_constant(operator), {})
    return Inverse(operator, solver, factor)


def check_inverse(call: str, inverse: Any) -> None:
    """Raises a `TypeError` for what `ok.invert` did not make."""
    if not isinstance(inverse, Inverse):
        raise TypeError(
            f"`{call}` needs an inverse, as `ok.invert(C, method, damping=...)` makes "
            f"it, got {type(inverse).__name__}."
        )


def split_damping(
    operator: lx.AbstractLinearOperator,
) -> tuple[lx.AbstractLinearOperator, Float[Array, ""]]:
    """C and λ of C + λI; λ is 0 where there is no damping."""
    damping = jnp.zeros((), jnp.result_type(float))
    while isinstance(operator, Damped):
        damping = damping + operator.damping.astype(damping.dtype)
        operator = operator.curvature
    return operator, damping


def fit_for_use(
    value: PyTree, operator: lx.AbstractLinearOperator, factor: PyTree
) -> PyTree:
    """The value, or the text of `ok.RESULTS` where its factor could not be made."""
    _, damping = split_damping(operator)
    outcome = first_of(
        (~(damping > 0), RESULTS.undamped),
        (~all_finite(factor), RESULTS.nonfinite_operator),
        (getattr(factor, "is_indefinite", jnp.zeros((), bool)), RESULTS.indefinite),
    )
    return outcome.error_if(value, outcome != RESULTS.successful)


@eqx.filter_custom_jvp
def _value(known: PyTree, inputs: PyTree, *, slow: Any) -> PyTree:
    del inputs, slow
    return known


@_value.def_jvp
def _(primals: Any, tangents: Any, *, slow: Any) -> tuple[PyTree, PyTree]:
    known, inputs = primals
    _, t_inputs = tangents
    _, tangent = eqx.filter_jvp(slow, (inputs,), (t_inputs,))
    return known, tangent


def with_derivative_of(slow: Any, inputs: PyTree, known: PyTree) -> PyTree:
    """The value `known`, with the derivative of slow(inputs), which equals it.

    For what is cheap from a factor, which is held constant, and is derived anew from
    the operator only where somebody differentiates.

    Returns:
        `known`.
    """
    return _value(_constant(known), inputs, slow=slow)


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


def _constant(tree: PyTree) -> PyTree:
    """The tree without derivatives."""
    return jax.tree.map(
        lambda x: lax.stop_gradient(x) if isinstance(x, jax.Array) else x, tree
    )


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
