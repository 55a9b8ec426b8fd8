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

from .._check import (
    check_real,
    first_difference,
)
from .._types import Params
from .._vector import all_finite, constant, structure_of
from .closure import hoisted
from .linear import solve_loudly


class AbstractCondition(eqx.Module):
    """What holds at a solution: F(y, args) = 0, and the Jacobian A = ∂_yF."""

    call: eqx.AbstractVar[str]
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
        args = jax.tree.map(_as_array, args)
        out = self.solve(constant(y0), constant(args))
        y, aux = constant(
            _split(self.condition.call, out) if self.has_aux else (out, 0)
        )
        y = jax.tree.map(jnp.asarray, y)
        check_real(self.condition.call, "y", y)
        if jax.tree.leaves(y):
            y = _solution(y, (self._hoisted(y, args), args), self.solver)
        return (y, aux) if self.has_aux else y

    def _hoisted(self, y: Params, args: PyTree) -> AbstractCondition:
        """The condition with the arrays that it closes over among its leaves."""
        condition = self.condition

        def checked(y: Params, args: PyTree) -> PyTree:
            value = condition.function(y, args)
            condition.check(value, y)
            return value

        function = hoisted(checked, condition.function, y, args)
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
        zero = nought(inputs, f)
        return (
            f if zero is None else jax.tree.map(lambda a: a + zero.astype(a.dtype), f)
        )

    _, t_residual = eqx.filter_jvp(residual, (inputs,), (t_inputs,))
    condition, args = inputs
    return solve_loudly(
        condition.operator(y, args),
        # None where F does not depend on what is perturbed.
        jax.tree.map(
            lambda y, t: jnp.zeros_like(y) if t is None else -t, y, t_residual
        ),
        solver,
        is_valid=lax.stop_gradient(all_finite(y)),
        nought=nought((y, inputs), y),
    )


def nought(tree: PyTree, like: Params) -> Array | None:
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


def check_like_solution(call: str, name: str, value: PyTree, y: Params) -> None:
    """Raises unless a function of (y, args) returned a pytree like y.

    Args:
        call: the decorator to name in the message.
        name: the name of the function there.
        value: the structure that it returned.
        y: the solution.

    Raises:
        ValueError: if structure or a shape differs.
        TypeError: if a dtype differs.
    """
    if (found := first_difference(value, y)) is None:
        return
    kind, where, got, want = found
    if kind == "structure":
        raise ValueError(
            f"`{call}` needs {name}(y, args) to return a pytree like the solution y "
            f"that the solver returned: one equation for each unknown.\n"
            f"  {name}: {got}\n  y: {want}"
        )
    if kind == "shape":
        raise ValueError(
            f"`{call}` needs one equation for each unknown, got {got} at "
            f"{name}(y, args){where}, and the solution y has {want} there."
        )
    raise TypeError(
        f"`{call}` got dtype {got} at {name}(y, args){where}, and the solution y has "
        f"{want} there. Cast one of them; `jnp.asarray(y, dtype)` in the solver is the "
        f"usual place."
    )


def _as_array(leaf: Any) -> Any:
    """NumPy's arrays as JAX's; anything else as it is."""
    is_numpy = isinstance(leaf, np.ndarray | np.generic)
    return jnp.asarray(leaf) if is_numpy and leaf.dtype.kind in "biufc" else leaf


def _split(call: str, out: Any) -> tuple[PyTree, PyTree]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(
            f"`{call}` with has_aux=True needs a solver that returns a pair (y, aux), "
            f"got {jax.tree.structure(out)}. Return `(y, aux)`, or leave has_aux out."
        )
    return out


def check_decorated(
    call: str, function: Any, solver: Any, has_aux: Any = False
) -> None:
    """Raises a `TypeError` unless a decorator got a function, a method and a bool."""
    if not callable(function):
        raise TypeError(
            f"`{call}` takes a function of (y, args) and returns a decorator for "
            f"solve(y0, args), got {function!r}."
        )
    if not isinstance(solver, lx.AbstractLinearSolver):
        raise TypeError(
            f"`{call}` needs a method for `solver`, such as `ok.GMRES()` or "
            f"`lx.LU()`, got {solver!r}."
        )
    if not isinstance(has_aux, bool):
        raise TypeError(f"`{call}` needs has_aux=True or False, got {has_aux!r}.")
