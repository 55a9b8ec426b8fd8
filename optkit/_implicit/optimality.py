"""Optimality maps, public as `ok.optimality`: what holds at a solution.

The derivative of a solution depends on the condition that it satisfies, not on how it
was found. The functions here build such conditions from the pieces of a problem:

    a residual F, zero at the solution              for `ok.implicit_root`
    a mapping T, whose fixed point is the solution  for `ok.implicit_fixed_point`

Both take `(y, args)` and return a pytree like y. Every piece gets the whole `args` and
picks its own hyperparameters from it: `objective(y, args)`, a real scalar, `prox(v,
args, step_size)`, `projection(v, args)`. Adapt other signatures with a lambda:

    lambda v, args, t: ok.prox.lasso(v, args["l1"], t)
    lambda v, args: optax.projections.projection_simplex(v, args["mass"])

The derivative of a solution does not depend on the step size η > 0, which only changes
the conditioning of the linear solve. The inverse of the objective's largest curvature
is a good choice. A step size that is not positive, or a piece that returns another
structure or shape, raises a `ValueError`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .._check import Check
from .._geometry.cone import Cone as Cone
from .._vector import axpy
from .conic import (
    ConicProgram as ConicProgram,
    ConicSolution as ConicSolution,
    conic as conic,
)
from .mirror import (
    exponentiated_gradient as exponentiated_gradient,
    mirror_descent as mirror_descent,
)
from .pieces import Map, Objective, checked_like, gradient_of
from .steps import (
    block_proximal_gradient as block_proximal_gradient,
    gradient_descent as gradient_descent,
    newton as newton,
    projected_gradient as projected_gradient,
    proximal_gradient as proximal_gradient,
)


class KKT(NamedTuple):
    """The unknowns of a constrained problem.

    Attributes:
        primal: z.
        dual_eq: ν, a pytree like the value of `equality`; None without equations.
        dual_ineq: λ >= 0, a pytree like that of `inequality`; None without any.
    """

    primal: PyTree
    dual_eq: PyTree = None
    dual_ineq: PyTree = None


def fixed_point_residual(mapping: Map) -> Map:
    """Returns F(y, args) = mapping(y, args) - y, for code that needs a root."""
    check = Check("ok.optimality.fixed_point_residual")
    check.function(mapping=mapping)

    def residual(y: PyTree, args: PyTree) -> PyTree:
        check.real(y=y)
        new = checked_like(check, "mapping(y, args)", mapping(y, args), y)
        return axpy(-1.0, y, new)

    return residual


def stationary(objective: Objective) -> Map:
    """Returns F(y, args) = ∇_y objective(y, args), zero at an unconstrained minimum.

    Prefer `ok.implicit_minimum`, which takes the objective itself and exploits that the
    Jacobian of F is symmetric.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> F = ok.optimality.stationary(lambda y, c: jnp.sum((y - c) ** 2))
        >>> print(F(jnp.array([3.0, 1.0]), jnp.array([1.0, 1.0])))
        [4. 0.]
    """
    return gradient_of(Check("ok.optimality.stationary"), objective)


def kkt(
    objective: Objective, equality: Map | None = None, inequality: Map | None = None
) -> Map:
    """Returns the KKT residual F of min f(z) with H(z) = 0 and G(z) <= 0.

        stationarity       ∇f(z) + [∂H(z)]ᵀν + [∂G(z)]ᵀλ = 0
        feasibility        H(z) = 0
        complementarity    λ ∘ G(z) = 0

    The unknown is an `ok.optimality.KKT(z, ν, λ)`. `equality` H and `inequality` G take
    `(z, args)` and return pytrees of any structure. The inequalities G(z) <= 0 and
    λ >= 0 select the solution but are not equations: the solver must satisfy them. If
    λ_i = 0 and G_i(z) = 0 for the same i, the solution has no derivative, and the
    Jacobian is singular. It is not symmetric.

    Raises:
        ValueError: when called, if multipliers do not match their constraints.
        TypeError: when called, if the unknown is not an `ok.optimality.KKT`.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> half_square = lambda z, b: 0.5 * jnp.sum(z**2)
        >>> F = ok.optimality.kkt(half_square, lambda z, b: jnp.sum(z) - b)
        >>> y = ok.optimality.KKT(jnp.array([1.0, 1.0]), jnp.array(-1.0))
        >>> print(F(y, 2.0).primal, F(y, 2.0).dual_eq)
        [0. 0.] 0.0
    """
    check = Check("ok.optimality.kkt")
    check.optional.function(equality=equality, inequality=inequality)
    gradient = gradient_of(check, objective)

    def pulled(
        name: str, constraint: Map, z: PyTree, args: PyTree, dual: PyTree
    ) -> tuple:
        """The constraint at z, and its transposed Jacobian times the multipliers."""
        value, pull = jax.vjp(lambda z: constraint(z, args), z)
        dual = checked_like(check, name, dual, value, "its constraint")
        return value, pull(dual)[0]

    def residual(y: PyTree, args: PyTree) -> KKT:
        check.instance(KKT, "`ok.optimality.KKT(primal, dual_eq, dual_ineq)`", y=y)
        z, nu, lam = y
        stationarity = gradient(z, args)
        feasibility = complementarity = None
        if equality is not None:
            feasibility, back = pulled("dual_eq", equality, z, args, nu)
            stationarity = axpy(1.0, back, stationarity)
        if inequality is not None:
            g, back = pulled("dual_ineq", inequality, z, args, lam)
            stationarity = axpy(1.0, back, stationarity)
            complementarity = jax.tree.map(jnp.multiply, lam, g)
        return KKT(stationarity, feasibility, complementarity)

    return residual
