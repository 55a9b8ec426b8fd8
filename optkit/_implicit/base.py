"""The derivative of a solution, whoever computed it.

A solution y of F(y, θ) = 0 moves with θ so that F stays zero:

    A ẏ = -∂_θF θ̇    with A = ∂_yF    at the solution

What holds at the solution is a condition: that F is zero, that an objective is
minimal, or that a mapping leaves y as it is. The decorators differ in it, and in the
method for A that they take where none is given; the rest is here. The user's solver
runs outside of all rules, on constants, so it may be anything that returns y. The rule
for ẏ is a JVP whose linear solve can be transposed, and takes y from itself, so every
order and every mix of modes follows from it.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from .._check import Check
from .._types import Params
from .._vector import all_finite, constant, structure_of
from .closure import capture_constants
from .linear import solve_or_raise


class AbstractCondition(eqx.Module):
    """What holds at a solution: F(y, args) = 0, and the Jacobian A = ∂_yF."""

    maker: eqx.AbstractClassVar[str]
    function: eqx.AbstractVar[Callable[..., Any]]

    @abc.abstractmethod
    def residual(self, y: Params, args: PyTree) -> Params:
        """F(y, args), a pytree like y."""

    @abc.abstractmethod
    def operator(self, y: Params, args: PyTree) -> lx.AbstractLinearOperator:
        """A at y, with all of F that does not depend on the vector computed once."""

    @abc.abstractmethod
    def check(self, value: PyTree, y: Params) -> None:
        """Raises unless `value` is what the function should return."""


class ImplicitSolve(eqx.Module):
    """A solver whose solution is differentiated by the condition that it satisfies.

    Made by `ok.implicit_root`, `ok.implicit_minimum` and `ok.implicit_fixed_point`;
    called as the solver is.

    Args:
        solve: solve(y0, args) -> y, or (y, aux).
        condition: what holds at y.
        solver: the method for the linear system behind a derivative.
        has_aux: whether `solve` returns a pair.
    """

    solve: Callable[..., Any]
    condition: AbstractCondition
    solver: lx.AbstractLinearSolver
    has_aux: bool = eqx.field(static=True)

    def __call__(self, y0: PyTree, args: PyTree) -> PyTree:
        """Runs the solver.

        Args:
            y0: a starting point. Where the solution does not depend on it, neither
                does its derivative, which is zero.
            args: all that the solution depends on. Only floating arrays carry
                derivatives; integers, None, strings, keys and functions may be there.

        Returns:
            y, or (y, aux), where aux carries no derivative.

        Raises:
            ValueError: if the solution is not what the condition takes.
            TypeError: if it is not of real floating arrays.
        """
        check = Check(self.condition.maker)
        args = jax.tree.map(_as_array, args)
        out = self.solve(constant(y0), constant(args))
        if self.has_aux:
            text = f"needs a solver that returns (y, aux), got {type(out).__name__}."
            check.that(isinstance(out, tuple) and len(out) == 2, text)
        y, aux = constant(out if self.has_aux else (out, 0))
        y = jax.tree.map(jnp.asarray, y)
        check.real(y=y)
        if jax.tree.leaves(y):
            y = _solution(y, (self._captured(y, args), args), self.solver)
        return (y, aux) if self.has_aux else y

    def _captured(self, y: Params, args: PyTree) -> AbstractCondition:
        """The condition with the arrays that it closes over among its leaves."""
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
    # `jax.grad` hands a Python number on as it is, and that would be static below.
    inputs = jax.tree.map(
        lambda x, t: x if t is None else jnp.asarray(x), inputs, t_inputs
    )
    return y, _tangent(y, inputs, t_inputs, constant(solver))


@eqx.filter_jit
def _tangent(y: Params, inputs: PyTree, t_inputs: PyTree, solver: Any) -> Params:
    """A⁻¹(-∂_θF θ̇)."""

    def residual(inputs: PyTree) -> Params:
        condition, args = inputs
        f = condition.residual(y, args)
        zero = zero_tangent(inputs, f)
        return (
            f if zero is None else jax.tree.map(lambda a: a + zero.astype(a.dtype), f)
        )

    _, t_residual = eqx.filter_jvp(residual, (inputs,), (t_inputs,))
    condition, args = inputs
    return solve_or_raise(
        condition.operator(y, args),
        # None where F does not depend on what is perturbed.
        jax.tree.map(
            lambda y, t: jnp.zeros_like(y) if t is None else -t, y, t_residual
        ),
        solver,
        is_valid=lax.stop_gradient(all_finite(y)),
        zero_tangent=zero_tangent((y, inputs), y),
    )


def zero_tangent(tree: PyTree, like: Params) -> Array | None:
    """Zero, as a function of every floating array of the tree.

    Returns:
        The zero, or None where `like` has a single leaf: no other needs it.
    """
    if len(jax.tree.leaves(like)) == 1:
        return None
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    terms = [jnp.where(jnp.isfinite(x), x, 0) for x in leaves]
    terms = [jnp.real(0 * jnp.sum(x)).astype(jnp.float32) for x in terms]
    return sum(terms, jnp.zeros((), jnp.float32))


def linearised(
    function: Callable[[Params], Params], y: Params, tags: Any = ()
) -> lx.AbstractLinearOperator:
    """The Jacobian of a function at y, by products that share one evaluation of it."""
    _, product = jax.linearize(function, y)
    return lx.FunctionLinearOperator(
        product, structure_of(y), tags, closure_convert=False
    )


def check_like_solution(maker: str, name: str, value: PyTree, y: Params) -> None:
    """Raises unless a function of (y, args) returned a pytree like y."""
    advice = "There must be one equation for each unknown, in its dtype."
    Check(maker).like(f"{name}(y, args)", value, y, "the solution y", advice)


def _as_array(leaf: Any) -> Any:
    """NumPy's arrays as JAX's; anything else as it is."""
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    return jnp.asarray(leaf) if is_numpy and leaf.dtype.kind in "biufc" else leaf


def decorator(
    check: Check,
    condition: AbstractCondition,
    method: lx.AbstractLinearSolver,
    has_aux: bool,
) -> Callable[[Callable[..., Any]], ImplicitSolve]:
    """The decorator that gives a solver the derivative of a condition."""
    check.method(solver=method)
    check.instance(bool, "True or False", has_aux=has_aux)

    def decorate(solve: Callable[..., Any]) -> ImplicitSolve:
        check.function(solve=solve)
        return ImplicitSolve(solve, condition, method, has_aux)

    return decorate
