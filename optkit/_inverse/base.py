"""What every method for (C + λI)⁻¹ has in common.

A method is a `lineax.AbstractLinearSolver`, so it also works in Lineax and Optimistix,
and Lineax's solvers work here. It factorises once and then solves for many vectors:

    factor = method.factorise(A)      x, outcome, stats = method.apply(A, factor, b)

An iterative method gets b in float32 or wider, scaled so that its largest entry is near
1. So it does not depend on the scale of the loss or the dtypes of the leaves.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._check import Check
from .._curvature.damped import split_damping
from .._results import RESULTS, first_failure, nearest_in_lineax, raise_failure
from .._types import Params
from .._vector import (
    all_finite,
    axpy,
    cast_like,
    constant,
    narrowest_eps,
    norm,
    over_peak,
    scale,
    subtract,
    widen,
)

Operator: TypeAlias = lx.AbstractLinearOperator
Index: TypeAlias = Int[Array, "..."]
Solved: TypeAlias = tuple[Params, Any, dict[str, Any]]
"""x, an item of `ok.RESULTS`, and statistics."""


_COMPLEX = (
    "needs real leaves, got complex ones. Solve for the pair (u, v) of x = u + iv, "
    "with (Re A x, Im A x) as the product and (Re b, Im b) on the right; it is "
    "symmetric if A is Hermitian. Or use `lx.GMRES(rtol, atol)`."
)


class AbstractInverse(lx.AbstractLinearSolver):
    """A method for (C + λI)⁻¹: `factorise` takes the operator, `apply` a vector.

    The factor must also serve the transposed operator.
    """

    needs_symmetric: ClassVar[bool]
    options: ClassVar[frozenset[str]] = frozenset()  # of `lx.linear_solve`

    @abc.abstractmethod
    def factorise(self, operator: Operator) -> PyTree:
        """Does the work that needs no right-hand side, and returns a pytree of arrays.

        `operator` is C + λI, an `ok.Damped` if it comes from `ok.invert`.
        """

    @abc.abstractmethod
    def apply(self, operator: Operator, factor: PyTree, vector: Params) -> Solved:
        """Solves (C + λI) x = b: returns x, an item of `ok.RESULTS`, and statistics."""

    def init(
        self, operator: Operator, options: dict[str, Any]
    ) -> tuple[Operator, PyTree]:
        """Lineax's name for `factorise`, with checks."""
        check = Check(f"ok.{type(self).__name__}")
        known, got = sorted(self.options), sorted(options)
        text = f"takes the options {known}, got {got}. Others are in its constructor."
        check.that(self.options >= set(options), text)
        dtypes = map(jnp.result_type, jax.tree.leaves(operator.in_structure()))
        is_complex = any(jnp.issubdtype(d, jnp.complexfloating) for d in dtypes)
        check.that(not is_complex, _COMPLEX, TypeError)
        if self.needs_symmetric:
            check.symmetric(operator)
        else:
            pair = operator.out_structure(), operator.in_structure()
            advice = "For a least-squares problem, use a method such as `lx.LSMR`."
            check.like("the operator's output", *pair, "its input", advice)
        if (m := options.get("preconditioner")) is not None:
            pair = m.in_structure(), operator.in_structure()
            check.like("the preconditioner's params", *pair, "the operator's")
        return operator, self.factorise(operator)

    def compute(
        self, state: tuple[Operator, PyTree], vector: Params, options: dict[str, Any]
    ) -> Solved:
        """Lineax's name for `apply`, with the nearest of Lineax's own results."""
        operator, factor = state
        factor = options.get("preconditioner", factor)
        start = {"y0": options["y0"]} if "y0" in options else {}
        check = Check(f"ok.{type(self).__name__}")
        check.like("y0", start.get("y0", vector), vector, "the right-hand side")
        value, outcome, stats = self.apply(operator, factor, vector, **start)
        return value, nearest_in_lineax(outcome), {**stats, "outcome": outcome}

    def transpose(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The transposed operator and preconditioner, with the same factor."""
        operator, factor = state
        m = options.get("preconditioner")
        options = {} if m is None else {"preconditioner": m.transpose()}
        return (operator.transpose(), factor), options

    def conj(self, state: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        """The state itself, because the operator is real."""
        return state, options

    def assume_full_rank(self) -> bool:
        """True: if the operator is not invertible, the solve fails."""
        return True


class AbstractExplicitInverse(AbstractInverse):
    """A method whose inverse has known entries."""

    @abc.abstractmethod
    def diagonal(self, operator: Operator, factor: PyTree) -> Params:
        """The diagonal of (C + λI)⁻¹, differentiable in the operator."""

    @abc.abstractmethod
    def entry(
        self, operator: Operator, factor: PyTree, a: Index, b: Index
    ) -> Float[Array, "..."]:
        """Entries (a, b) of (C + λI)⁻¹, indexed as in `ok.Inverse.entry`."""


class System(NamedTuple):
    """A x = b, scaled and widened."""

    product: Callable[[Params], Params]  # v ↦ A v, in float32 or wider
    b: Params  # its largest entry is in [1, 4), unless all are 0
    size: Array  # |b|
    target: Array  # what residuals are relative to: |b|, or larger with a `y0`
    like: Params  # the b that was passed, for its dtypes
    is_symmetric: bool  # whether A is known to be symmetric

    def goals(self, rtol: Any) -> "Goals":
        """The residuals to aim at, from a relative tolerance or None."""
        eps = narrowest_eps(self.like)
        default = 1e-10 if eps <= jnp.finfo(jnp.float64).eps else 1e-5
        wanted = jnp.asarray(default if rtol is None else rtol, self.size.dtype)
        wanted = jnp.maximum(wanted, 4 * eps)
        aim = jnp.maximum(wanted - 8 * eps, wanted / 2)
        accepted = jnp.maximum(wanted, eps**0.5) if rtol is None else wanted
        return Goals(*(x * self.target for x in (aim, wanted, accepted)))

    @property
    def num_coordinates(self) -> int:
        """The number of entries of b, at least 1."""
        return max(optax.tree.size(self.b), 1)

    def max_steps(self, given: int | None) -> int:
        """By default ten times the number of coordinates; a number that int32 holds."""
        return min(given or 10 * self.num_coordinates, 2**31 - 1)


class Goals(NamedTuple):
    """Norms of the residual b - A x."""

    aim: Array  # by recurrence, off by a few eps: below it, compute the true residual
    wanted: Array  # of the true residual
    accepted: Array  # where rounding prevents less; for a user's rtol, `wanted`


class AbstractIterative(AbstractInverse):
    """A method that needs only products with the operator."""

    @abc.abstractmethod
    def iterate(self, system: System, factor: PyTree) -> Solved:
        """Solves A x = b from x = 0; the statistic `residual` is |b - A x|."""

    def apply(
        self,
        operator: Operator,
        factor: PyTree,
        vector: Params,
        y0: Params | None = None,
    ) -> Solved:
        """Scales, iterates, and scales back. From y0, it solves A d = b - A y0."""
        symmetric = lx.is_symmetric(operator)
        right = widen(vector)
        if self.needs_symmetric and lx.is_negative_semidefinite(operator):
            operator, right = -operator, jax.tree.map(jnp.negative, right)
        linear = lx.linearise(operator)

        def product(v: Params) -> Params:
            return widen(linear.mv(cast_like(v, vector)))

        b, power = over_peak(right)
        size = target = norm(b)
        if y0 is not None:
            old_power = power
            b, power = over_peak(subtract(right, product(y0)))
            size, target = norm(b), target * (old_power / power)
        system = System(product, b, size, target, vector, symmetric)
        x, outcome, stats = self.iterate(system, factor)
        is_bad = ~jnp.isfinite(size)
        outcome = first_failure((is_bad, RESULTS.nonfinite_input), (~is_bad, outcome))
        residual = stats["residual"] / jnp.where(target > 0, target, 1)
        x = scale(power, x) if y0 is None else axpy(power, x, widen(y0))
        return cast_like(x, vector), outcome, {**stats, "residual": residual}


def raise_if_failed(value: PyTree, operator: Operator, factor: PyTree) -> PyTree:
    """The value, or an error at run time if the factor behind it failed."""
    _, damping = split_damping(operator)
    outcome = first_failure(
        (~(damping > 0), RESULTS.undamped),
        (~all_finite(factor), RESULTS.nonfinite_operator),
        (getattr(factor, "is_indefinite", jnp.zeros((), bool)), RESULTS.indefinite),
    )
    return raise_failure(outcome, value)


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
    """Returns `known`, with the derivative of slow(inputs), which has the same value.

    For values that a factor makes cheap. The factor is held constant: only derivatives
    recompute the values from the operator.
    """
    return _value(constant(known), inputs, slow=slow)
