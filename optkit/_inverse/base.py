"""What a method for (C + λI)⁻¹ holds, and what every method is given.

A method is a `lineax.AbstractLinearSolver`: Lineax's own work here, and these work in
Lineax and Optimistix. It factorises once, and is applied to many vectors:

    factor = method.factorise(A)      x, outcome, stats = method.apply(A, factor, b)

An iterative method sees b scaled to entries near 1, in float32 or wider, and so neither
the scale of the loss nor the dtypes of its leaves. It returns what it found there.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Int, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._results import RESULTS, first_failure, nearest_in_lineax
from .._types import Params
from .._vector import all_finite, cast_like, constant, norm, over_peak, scale, widen

Solved = tuple[Params, Any, dict[str, Any]]
"""x, an item of `ok.RESULTS`, and statistics."""


class AbstractInverse(lx.AbstractLinearSolver):
    """A method for (C + λI)⁻¹: `factorise` looks at the operator, `apply` at a vector.

    The state that Lineax passes around is the operator and its factor, which must also
    be that of the transposed operator.
    """

    needs_symmetric: eqx.AbstractClassVar[bool]

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
    ) -> Solved:
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
        """Lineax's name for `factorise`, after checks."""
        check = Check(f"ok.{type(self).__name__}")
        text = f"takes its options in its constructor, got {sorted(options)}."
        check.that(not options, text)
        if self.needs_symmetric:
            check.symmetric(operator)
        else:
            pair = operator.out_structure(), operator.in_structure()
            advice = "For a least-squares problem, use a method such as `lx.LSMR`."
            check.like("the operator's output", *pair, "its input", advice)
        return operator, self.factorise(operator)

    def compute(
        self,
        state: tuple[lx.AbstractLinearOperator, PyTree],
        vector: Params,
        options: dict[str, Any],
    ) -> Solved:
        """Lineax's name for `apply`; its results are the nearest of Lineax's."""
        del options
        value, outcome, stats = self.apply(*state, vector)
        return value, nearest_in_lineax(outcome), {**stats, "outcome": outcome}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The transposed operator, with the same factor."""
        operator, factor = state
        return (operator.transpose(), factor), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, as the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True: the operator is invertible or the solve fails."""
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


class System(NamedTuple):
    """A x = b, scaled and widened.

    Attributes:
        product: v ↦ A v, in float32 or wider.
        b: its largest entry is in [1, 4), or all are 0; in float32 or wider.
        size: |b|.
        like: b as it came, for its dtypes.
        is_symmetric: whether A is known to be.
    """

    product: Callable[[Params], Params]
    b: Params
    size: Array
    like: Params
    is_symmetric: bool

    def goals(self, rtol: Any) -> "Goals":
        """The residuals to aim at, from a relative tolerance or None."""
        eps = max([float(jnp.finfo(leaf).eps) for leaf in jax.tree.leaves(self.like)])
        wanted = jnp.asarray(1e-5 if rtol is None else rtol, self.size.dtype)
        wanted = jnp.maximum(wanted, 4 * eps)
        aim = jnp.maximum(wanted - 8 * eps, wanted / 2)
        accepted = jnp.maximum(wanted, eps**0.5) if rtol is None else wanted
        return Goals(*(x * self.size for x in (aim, wanted, accepted)))

    def max_steps(self, given: int | None) -> int:
        """The number of steps allowed, by default ten times that of coordinates."""
        return given or 10 * max(sum(leaf.size for leaf in jax.tree.leaves(self.b)), 1)


class Goals(NamedTuple):
    """Norms of the residual b - A x.

    Attributes:
        aim: by recurrence, which is some eps off: time to look at the true one.
        wanted: of the true residual.
        accepted: of the true residual where rounding prevents a smaller one; for a
            tolerance that the user gave, the same.
    """

    aim: Array
    wanted: Array
    accepted: Array


class AbstractIterative(AbstractInverse):
    """A method that needs only products with the operator."""

    @abc.abstractmethod
    def iterate(self, system: System, factor: PyTree) -> Solved:
        """Solves A x = b from x = 0.

        Args:
            system: A and b, scaled and widened.
            factor: what `factorise` returned.

        Returns:
            x; an item of `ok.RESULTS`; and statistics, of which `residual` is |b - A x|
            of the system.
        """

    def apply(
        self, operator: lx.AbstractLinearOperator, factor: PyTree, vector: Params
    ) -> Solved:
        """Scales, iterates, and scales back."""
        linear = lx.linearise(operator)

        def product(v: Params) -> Params:
            return widen(linear.mv(cast_like(v, vector)))

        b, power = over_peak(vector)
        size = norm(b)
        system = System(product, b, size, vector, lx.is_symmetric(operator))
        x, outcome, stats = self.iterate(system, factor)
        outcome = first_failure(
            (~jnp.isfinite(size), RESULTS.nonfinite_input),
            (outcome != RESULTS.successful, outcome),
        )
        residual = stats["residual"] / jnp.where(size > 0, size, 1)
        x = cast_like(scale(power, x), vector)
        return x, outcome, {**stats, "residual": residual}


def raise_if_failed(
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
