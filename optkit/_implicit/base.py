"""Derivatives of solutions, by the implicit function theorem.

A solution y of F(y, θ) = 0 moves with θ so that F stays zero:

    A ẏ = -∂_θF θ̇    with A = ∂_yF    at the solution

A condition says what F is: a residual, the gradient of an objective, or y - T(y). Each
decorator has its own condition and default method for A; this file holds the rest. The
user's solver runs on constants, outside all derivative rules, so it may be anything
that returns y. The rule for ẏ is a JVP whose linear solve can be transposed. It calls
itself for y, which yields derivatives of any order, in any mix of modes.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import PyTree

from .._check import Check
from .._linearize import linearize
from .._types import Params
from .._vector import constant, structure_of
from .call import P, R, bound, on_tracers
from .closure import capture_constants
from .linear import solve_or_raise, zero_tangent

_REVERSE = "In reverse mode, `solver=ok.GMRES()` needs only its transposed products."


class AbstractCondition(eqx.Module):
    """What holds at a solution: F(y, args) = 0, and the Jacobian A = ∂_yF."""

    call: ClassVar[str]  # the decorator, for messages
    function: eqx.AbstractVar[Callable[..., Any]]

    @abc.abstractmethod
    def residual(self, y: Params, args: PyTree) -> Params:
        """F(y, args), a pytree like y."""

    @abc.abstractmethod
    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """A at y. Whatever does not depend on the vector is computed once."""

    @abc.abstractmethod
    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless `value` is a valid result of the user's function."""


class AbstractEquation(AbstractCondition):
    """A condition whose function returns a pytree like y."""

    name: ClassVar[str]  # the function's, for messages

    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """∂_yF, whose products share one evaluation of F."""
        _, product = linearize_residual(self, lambda y: self.residual(y, args), y)
        structure = structure_of(y)
        return lx.FunctionLinearOperator(product, structure, closure_convert=False)

    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless `value` is like y."""
        advice = "There must be one equation per unknown, in its dtype."
        name = f"{self.name}(y, args)"
        Check(self.call).like(name, value, y, "the solution y", advice)


class ImplicitSolve(eqx.Module, Generic[P, R]):
    """A solver whose solution is differentiated through the condition it satisfies.

    Made by `ok.implicit_root`, `ok.implicit_minimum` and `ok.implicit_fixed_point`.
    Call it as you would call the solver.
    """

    solve: Callable[P, R]  # solve(y0, args) -> y, or (y, aux) if `has_aux`
    condition: AbstractCondition
    solver: lx.AbstractLinearSolver  # for the linear system of the derivative
    has_aux: bool = eqx.field(static=True)

    def __call__(self, *inputs: P.args, **options: P.kwargs) -> R:
        """Runs the solver.

        Args:
            *inputs: y0 and args. They may be passed by keyword, under these names or
                the solver's. y0 is a starting point, whose derivative is zero. args is
                everything that the solution depends on. Only floating arrays carry
                derivatives; integers, None, strings, keys and functions are allowed.
            **options: further keywords of the solver, without floating arrays.

        Returns:
            y, or (y, aux). aux carries no derivative.

        Raises:
            ValueError: if the condition does not fit the solution.
            TypeError: if y has leaves that are not real floating arrays.
        """
        check = Check(self.condition.call)
        y0, args, rest = bound(check, self.solve, inputs, options)
        args = jax.tree.map(_as_array, args)
        with on_tracers(check):
            out = self.solve(constant(y0), constant(args), **rest)  # pyright: ignore
        if self.has_aux:
            text = f"needs a solver that returns (y, aux), got {type(out).__name__}."
            check.that(isinstance(out, tuple) and len(out) == 2, text)
        y, aux = constant(out if self.has_aux else (out, None))
        check.real(y=y)
        y = jax.tree.map(jnp.asarray, y)
        if jax.tree.leaves(y):
            y = _solution(y, (self._captured(y, args), args), self.solver)
        return (y, aux) if self.has_aux else y  # pyright: ignore

    def _captured(self, y: Params, args: PyTree) -> AbstractCondition:
        """The condition, with the arrays that its function closes over as leaves."""
        condition = self.condition

        def checked(y: Params, args: PyTree) -> PyTree:
            value = condition.function(y, args)
            condition.check(value, y)
            return value

        function = capture_constants(checked, condition.function, y, args)
        return eqx.tree_at(lambda c: c.function, condition, function)


@eqx.filter_custom_jvp
def _solution(y: Params, inputs: PyTree, solver: Any) -> Params:
    del inputs, solver
    return y


@_solution.def_jvp
def _(primals: Any, tangents: Any) -> tuple[Params, Params | None]:
    y, inputs, solver = primals
    _, t_inputs, _ = tangents
    y = _solution(y, inputs, solver)
    if not jax.tree.leaves(t_inputs):
        return y, jax.tree.map(lambda _: None, y)
    # `jax.grad` passes Python numbers on; `filter_jit` would treat them as static.
    inputs = jax.tree.map(
        lambda x, t: x if t is None else jnp.asarray(x), inputs, t_inputs
    )
    tangent = _kept_tangent if inputs[0].function.is_comparable else _passing_tangent
    return y, tangent(y, inputs, t_inputs, constant(solver))


def _tangent(y: Params, inputs: PyTree, t_inputs: PyTree, solver: Any) -> Params:
    """A⁻¹(-∂_θF θ̇), where θ is every floating array of `inputs`."""
    theta, rest = eqx.partition(inputs, jax.tree.map(_is_perturbed, inputs, t_inputs))

    def residual(theta: PyTree) -> Params:
        inputs = eqx.combine(theta, rest)
        condition, args = inputs
        F, zero = condition.residual(y, args), zero_tangent(inputs, y)
        if zero is None:
            return F
        return jax.tree.map(lambda a: a + zero.astype(a.dtype), F)

    condition, args = inputs
    _, push = linearize_residual(condition, residual, theta)
    right = jax.tree.map(jnp.negative, push(t_inputs))
    return solve_or_raise(condition.operator(y, args), right, solver, y, inputs)


_kept_tangent = eqx.filter_jit(_tangent)


def _passing_tangent(*data: PyTree) -> Params:
    """Compiled for one call. A kept program that no later call can use is a leak."""
    arrays, rest = eqx.partition(data, eqx.is_array)
    return jax.jit(lambda arrays: _tangent(*eqx.combine(arrays, rest)))(arrays)


def linearize_residual(
    condition: AbstractCondition, residual: Callable[[PyTree], Params], at: PyTree
) -> tuple[Params, Callable[[PyTree], Params]]:
    """F and the product with its Jacobian in whatever `residual` takes."""
    check, advice = Check(condition.call), _REVERSE
    return linearize(check, residual, at, advice=advice, is_needed=False)


def decorator(
    check: Check, condition: AbstractCondition, method: Any, has_aux: bool
) -> Callable[[Callable[P, R]], ImplicitSolve[P, R]]:
    """Makes a decorator that differentiates a solver through a condition."""
    check.method(solver=method)
    check.instance(bool, "True or False", has_aux=has_aux)

    def decorate(solve: Callable[P, R]) -> ImplicitSolve[P, R]:
        check.function(solve=solve)
        return ImplicitSolve(solve, condition, method, has_aux)

    return decorate


def _is_perturbed(leaf: Any, tangent: Any) -> bool:
    return tangent is not None


def _as_array(leaf: Any) -> Any:
    """Converts a NumPy array to a JAX array, and leaves other leaves unchanged."""
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    return jnp.asarray(leaf) if is_numpy and leaf.dtype.kind in "biufc" else leaf
