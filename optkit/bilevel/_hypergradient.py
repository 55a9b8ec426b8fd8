"""The hypergradient: the derivative of x ↦ F(x, y*(x)), by the chain rule.

    ∇Φ(x) = ∇_x F + (∂y/∂x)ᵀ ∇_y F

A method says what y is and how its transposed derivative acts: by the implicit function
theorem (`Implicit`, `ImplicitProjected`), or through the steps that lead to y
(`Unrolled`, `ForwardMode`).
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._results import RESULTS, described
from .._solver.move import Projection, mover, residual
from .._types import Params
from ._base import (
    Batch,
    Batches,
    InnerBatches,
    Objective,
    batches_of,
    inner_step,
    objectives_of,
    upper_gradients,
)

METHOD = "a method such as `ok.bilevel.Implicit(ok.CG())`"


class HypergradientInfo(NamedTuple):
    """A report on one hypergradient.

    Attributes:
        value: F where the hypergradient was taken.
        lower: g there.
        y: the given y, or the y that unrolled steps reached.
        direct: ∇_x F, the part that does not go through y.
        residual_norm: |∇_y g|, or that of the projected step if y is constrained.
        linear_residual: |H v - ∇_y F| / |∇_y F|; NaN if there is no linear solve.
        result: an item of `ok.RESULTS`, which says how the linear solve ended.
    """

    value: Float[Array, ""]
    lower: Float[Array, ""]
    y: Params
    direct: Params
    residual_norm: Float[Array, ""]
    linear_residual: Any = math.nan
    result: Any = RESULTS.successful
    __repr__ = described


class Pulled(NamedTuple):
    """(∂y/∂x)ᵀ b, and how it was computed."""

    value: Params  # a pytree like x
    lower: Float[Array, ""]  # g
    residual_norm: Float[Array, ""]
    linear_residual: Any = math.nan
    result: Any = RESULTS.successful
    memory: PyTree = None  # for the next hypergradient


Response = tuple[Params, Callable[[Params], Pulled]]
"""y, and b ↦ (∂y/∂x)ᵀ b."""


class AbstractHypergradient(eqx.Module):
    """A method for `ok.bilevel.hypergradient` and `hypergradient_descent`."""

    moves_y: ClassVar[bool]
    """Whether the method takes the steps of y itself."""

    @abc.abstractmethod
    def init(self, y: Params) -> PyTree:
        """The first memory, which is carried from one hypergradient to the next."""

    @abc.abstractmethod
    def response(
        self, lower: Objective, x: Params, y: Params, batches: Batches, memory: PyTree
    ) -> Response:
        """Returns y, and a function that multiplies by its transposed derivative in x.

        The given y is a minimiser of g, or the start of unrolled steps. `batches` has
        `lower_x` for the second derivatives of g and, as `InnerBatches`, `lower_y` for
        its steps. `memory` is from `init` or from the last call.
        """

    def estimate(
        self,
        objectives: tuple[Objective, Objective],
        x: Params,
        y: Params,
        batches: tuple[Batches, bool],
        memory: PyTree,
    ) -> tuple[Params, HypergradientInfo, PyTree]:
        """The hypergradient at (x, y), a report, and the next memory."""
        (upper, lower), (given, is_shared) = objectives, batches
        inner = InnerBatches(given.lower_y, is_shared)
        y, pull = self.response(lower, x, y, given._replace(lower_y=inner), memory)
        F, F_x, F_y = upper_gradients(upper, x, y, given.upper_x)
        through, g, residual_norm, linear_residual, result, memory = pull(F_y)
        info = HypergradientInfo(F, g, y, F_x, residual_norm, linear_residual, result)
        return jax.tree.map(jnp.add, F_x, through), info, memory


class AbstractPath(AbstractHypergradient):
    """A method that takes the steps of y and differentiates through them."""

    num_steps: eqx.AbstractVar[int]
    inner: eqx.AbstractVar[optax.GradientTransformation]
    project_y: eqx.AbstractVar[Projection | None]
    moves_y: ClassVar[bool] = True

    def init(self, y: Params) -> PyTree:
        """Nothing."""

    def step(self, lower: Objective, x: Params) -> Callable[[PyTree, Batch], PyTree]:
        """Ξ, a step of y and of its opt_state."""
        check = Check(f"ok.bilevel.{type(self).__name__}")
        return inner_step(lower, mover(check, "y", self.project_y, inner=self.inner), x)

    def pulled(
        self, value: Params, lower: Objective, x: Params, y: Params, batch: Batch
    ) -> Pulled:
        """The result, with g and its residual at the end of the path."""
        g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, batch)
        return Pulled(value, g, residual(g_y, y, self.project_y))


def hypergradient(
    upper: Objective, lower: Objective, *, method: AbstractHypergradient
) -> Callable[[Params, Params, Batch], tuple[Params, HypergradientInfo]]:
    """Makes a function that estimates the derivative of x ↦ F(x, y*(x)).

        ∇Φ(x) = ∇_x F - J H⁻¹ ∇_y F    H = ∇²_yy g    J u = ∇_x ⟨∇_y g, u⟩

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar, minimised by y.
        method: `ok.bilevel.Implicit(solver)`, `ok.bilevel.ImplicitProjected(...)`,
            `ok.bilevel.Unrolled(...)` or `ok.bilevel.ForwardMode(...)`.

    Returns:
        A function (x, y, batch) -> (gradient, info): a pytree like x, and an
        `ok.bilevel.HypergradientInfo`. y is an approximate minimiser of g(x, ·), or the
        start of unrolled steps. Of an `ok.bilevel.Batches`, F uses `upper_x`, second
        derivatives of g use `lower_x`, and unrolled steps use `lower_y`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> lower = lambda x, y, batch: jnp.sum((y - 3 * x) ** 2)
        >>> upper = lambda x, y, batch: 0.5 * jnp.sum(y**2)
        >>> method = ok.bilevel.Implicit(ok.CG())
        >>> gradient = ok.bilevel.hypergradient(upper, lower, method=method)
        >>> x = jnp.array([1.0])
        >>> gradient(x, 3 * x, None)[0]  # of ½ (3x)²
        Array([9.], dtype=float32)
    """
    check = Check("ok.bilevel.hypergradient")
    objectives = objectives_of(check, upper, lower)
    check.instance(AbstractHypergradient, METHOD, method=method)

    def estimate(
        x: Params, y: Params, batch: Batch
    ) -> tuple[Params, HypergradientInfo]:
        check.real(x=x, y=y)
        memory = method.init(y)
        return method.estimate(objectives, x, y, batches_of(batch), memory)[:2]

    return estimate
