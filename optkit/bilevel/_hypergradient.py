"""The hypergradient: the derivative of F(x, y*(x)) in x.

    ∇Φ(x) = ∇_x F - J H⁻¹ ∇_y F        H = ∇²_yy g    J u = ∇_x ⟨∇_y g, u⟩

at y = y*(x). What it is and how it is estimated are different objects: a method says
how H⁻¹ acts (`ok.bilevel.Implicit`, `ok.bilevel.ImplicitProjected`), or differentiates the steps that
lead to y (`ok.bilevel.Unrolled`, `ok.bilevel.ForwardMode`).
"""

import abc
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import optax
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._results import RESULTS
from .._solver.move import Projection, mover, residual
from .._types import Params
from ._base import Batch, Batches, Objective, batches_of, check_variables, objectives_of


class HypergradientInfo(NamedTuple):
    """How a hypergradient came about.

    Attributes:
        value: F where it was taken.
        lower: g there.
        y: there: the y given, or what the unrolled steps made of it.
        direct: ∇_x F, the part that does not go through y.
        residual_norm: |∇_y g|, or of the projected step if y is constrained.
        linear_residual: |H v - ∇_y F| / |∇_y F|; NaN where nothing is solved.
        result: an item of `ok.RESULTS`: how the solve went.
    """

    value: Float[Array, ""]
    lower: Float[Array, ""]
    y: Params
    direct: Params
    residual_norm: Float[Array, ""]
    linear_residual: Any = math.nan
    result: Any = RESULTS.successful


class AbstractHypergradient(eqx.Module):
    """A method for `ok.bilevel.hypergradient` and `ok.bilevel.hypergradient_descent`."""

    @abc.abstractmethod
    def init(self, y: Params) -> PyTree:
        """What is carried from one hypergradient to the next, to start from."""

    @abc.abstractmethod
    def estimate(
        self,
        objectives: tuple[Objective, Objective],
        x: Params,
        y: Params,
        batches: tuple[Batches, bool],
        memory: PyTree,
    ) -> tuple[Params, HypergradientInfo, PyTree]:
        """The hypergradient at (x, y).

        Args:
            objectives: F and g.
            x: the upper variable.
            y: the lower one: a minimiser of g, or where unrolled steps start.
            batches: one for each oracle, and whether they are all the same.
            memory: what `init` or the call before returned.

        Returns:
            A tree like x, an `ok.bilevel.HypergradientInfo`, and the next memory.
        """

    @property
    @abc.abstractmethod
    def moves_y(self) -> bool:
        """Whether the method takes the steps of y itself."""


def hypergradient(
    upper: Objective, lower: Objective, *, method: AbstractHypergradient
) -> Callable[[Params, Params, Batch], tuple[Params, HypergradientInfo]]:
    """Makes a function that estimates the derivative of x ↦ F(x, y*(x)).

        ∇Φ(x) = ∇_x F - J H⁻¹ ∇_y F    H = ∇²_yy g    J u = ∇_x ⟨∇_y g, u⟩

    Args:
        upper: F, upper(x, y, batch) -> scalar.
        lower: g, lower(x, y, batch) -> scalar, minimised by y.
        method: `ok.bilevel.Implicit(solver)`, `ok.bilevel.ImplicitProjected(...)`,
            `ok.bilevel.Unrolled(num_steps, inner)` or `ok.bilevel.ForwardMode(num_steps, inner)`.

    Returns:
        A function (x, y, batch) -> (gradient, info): a tree like x, and an
        `ok.bilevel.HypergradientInfo`. y is a minimiser of g(x, ·), as near as one has it, or
        where unrolled steps start. The batch may be an `ok.bilevel.Batches`: F is then of its
        `upper_x`, second derivatives of g of `lower_x`, unrolled steps of `lower_y`.

    Raises:
        TypeError: for a method of another kind, objectives that are not functions, or
            variables that are not trees of real floating arrays.
        ValueError: for an objective that does not return a scalar.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> def lower(x, y, batch):
        ...     return jnp.sum((y - 3 * x) ** 2)
        >>> def upper(x, y, batch):
        ...     return 0.5 * jnp.sum(y**2)
        >>> gradient = ok.bilevel.hypergradient(upper, lower, method=ok.bilevel.Implicit(ok.CG()))
        >>> x = jnp.array([1.0])
        >>> gradient(x, 3 * x, None)[0]  # of ½ (3x)²
        Array([9.], dtype=float32)
    """
    check = Check("ok.bilevel.hypergradient")
    objectives = objectives_of(check, upper, lower)
    check_method(check, method)

    def estimate(
        x: Params, y: Params, batch: Batch
    ) -> tuple[Params, HypergradientInfo]:
        check_variables(check, x, y)
        given = batches_of(batch)
        gradient, info, _ = method.estimate(objectives, x, y, given, method.init(y))
        return gradient, info

    return estimate


def check_method(check: Check, method: Any) -> None:
    """Raises a `TypeError` unless this is a method for hypergradients."""
    wanted = "a method such as `ok.bilevel.Implicit(ok.CG())`"
    check.instance(AbstractHypergradient, wanted, method=method)


def inner_step(
    check: Check,
    lower: Objective,
    x: Params,
    inner: optax.GradientTransformation,
    project_y: Projection | None,
) -> Any:
    """Ξ: the carry of y and the transform's state, one step on."""
    move = mover(check, "y", project_y, inner=inner)

    def step(carry: PyTree, batch: Batch) -> PyTree:
        y, memory = carry
        return move(jax.grad(lower, argnums=1)(x, y, batch), memory, y)

    return step


def unrolled_info(
    lower: Objective,
    where: tuple[Params, Params, Array, Params],
    batches: tuple[Batches, bool],
    project_y: Projection | None,
) -> HypergradientInfo:
    x, y, F, F_x = where
    given, is_shared = batches
    last = given.lower_y
    if not is_shared:
        last = jax.tree.map(lambda a: a[-1], last)
    g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, last)
    return HypergradientInfo(F, g, y, F_x, residual(g_y, y, project_y))
