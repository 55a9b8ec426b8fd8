"""What a method for inverse curvature must know, and what methods share.

A method is a `lineax.AbstractLinearSolver`: Lineax's own work here, and these work in
Lineax and Optimistix. It factorises once, and is applied to many vectors:

    A = C + λI      factor = method.factorise(A)      A⁻¹x = method.apply(A, factor, x)
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PyTree

from .._curvature.base import Damped
from .._results import (
    RESULTS,
    first_failure,
    nearest_in_lineax,
)
from .._types import Params
from .._vector import all_finite, common_dtype, constant


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
        result = nearest_in_lineax(outcome)
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
    outcome = first_failure(
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
    return _value(constant(known), inputs, slow=slow)


def check_matrix_free(call: str, operator: lx.AbstractLinearOperator) -> None:
    """Raises where a method for symmetric operators got one not known to be."""
    if not lx.is_symmetric(operator) and not lx.is_positive_semidefinite(operator):
        raise ValueError(
            f"`{call}` needs a symmetric operator, got `{type(operator).__name__}` "
            f"that is not known to be. If it is, tag it: `lx.TaggedLinearOperator("
            f"operator, lx.symmetric_tag)`, in Optimistix `tags=`. Else use "
            f"`lx.GMRES(...)` or `lx.Normal(lx.CG(...))`."
        )


def tolerances(rtol: Any, vector: Params) -> tuple[Array, Array, Array]:
    """What an iterative method wants of |b - A x| / |b|.

    Args:
        rtol: as the user gave it, or None.
        vector: b.

    Returns:
        Of the residual by recurrence, which is some eps off, when it is time to look at
        the true one; what that is to reach; and what will do where it cannot, which
        for a number is the same.
    """
    dtype = common_dtype(vector)
    eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(vector)])
    least, margin, enough = (
        jnp.asarray(x, dtype) for x in (4 * eps, 8 * eps, eps**0.5)
    )
    wanted = jnp.maximum(jnp.asarray(1e-5 if rtol is None else rtol, dtype), least)
    aim = jnp.maximum(wanted - margin, wanted / 2)
    return aim, wanted, jnp.maximum(wanted, enough) if rtol is None else wanted
