"""Steps of methods whose fixed point is a solution: part of `ok.optimality`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import ArrayLike, PyTree

from .._check import Check
from .._linearize import linearize
from .._results import raise_if
from .._vector import axpy, structure_of
from .pieces import Map, Objective, Prox, checked_like, gradient_of


def gradient_descent(objective: Objective, step_size: ArrayLike = 1.0) -> Map:
    """Returns a step of gradient descent, T(y, args) = y - η ∇_y objective(y, args)."""
    return _forward_step(Check("ok.optimality.gradient_descent"), objective, step_size)


def projected_gradient(
    objective: Objective,
    projection: Callable[[PyTree, PyTree], PyTree],
    step_size: ArrayLike = 1.0,
) -> Map:
    """Returns a step of projected gradient descent, for minima over a convex set.

        T(y, args) = projection(y - η ∇_y objective(y, args), args)

    See `ok.projections` and `optax.projections` for projections.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> objective = lambda y, c: 0.5 * jnp.sum((y - c) ** 2)
        >>> T = ok.optimality.projected_gradient(objective, lambda v, c: v.clip(0))
        >>> print(T(jnp.array([5.0, 5.0]), jnp.array([2.0, -1.0])))
        [2. 0.]
    """
    check = Check("ok.optimality.projected_gradient")
    step = _forward_step(check, objective, step_size, projection=projection)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        projected = projection(step(y, args), args)
        return checked_like(check, "projection(v, args)", projected, y)

    return mapping


def proximal_gradient(
    objective: Objective, prox: Prox, step_size: ArrayLike = 1.0
) -> Map:
    """Returns a step of proximal gradient descent, for minima of objective + r.

        T(y, args) = prox(y - η ∇_y objective(y, args), args, η)

    The objective is smooth, and r need not be: prox(v, args, η), as in `ok.prox`, is
    argmin_y ½|y - v|² + η r(y, args).

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> objective = lambda y, c: 0.5 * jnp.sum((y - c) ** 2)
        >>> prox = lambda v, c, t: ok.prox.lasso(v, 1.0, t)
        >>> T = ok.optimality.proximal_gradient(objective, prox)
        >>> print(T(jnp.zeros(2), jnp.array([2.0, -0.5])))
        [ 1. -0.]
    """
    check = Check("ok.optimality.proximal_gradient")
    step = _forward_step(check, objective, step_size, prox=prox)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        new = prox(step(y, args), args, step_size)
        return checked_like(check, "prox(v, args, step_size)", new, y)

    return mapping


def block_proximal_gradient(
    objective: Objective, proxes: PyTree, step_sizes: PyTree = 1.0
) -> Map:
    """Returns a proximal gradient step with a prox and a step size for each block of y.

        T(y, args)_j = prox_j(y_j - η_j ∇_j objective(y, args), args, η_j)

    All blocks step from the same y. The fixed points are those of block coordinate
    descent, in any order of the blocks. `proxes` is a prefix of y whose leaves are
    functions; the block of a function is the subtree of y at its place. `ok.prox.none`
    is for a smooth block. `step_sizes` are like `proxes`, or one number for all.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> f = lambda y, c: 0.5 * jnp.sum((y["w"] + y["bias"] - c) ** 2)
        >>> lasso = lambda v, c, t: ok.prox.lasso(v, 1.0, t)
        >>> proxes, steps = {"w": lasso, "bias": ok.prox.none}, {"w": 1.0, "bias": 0.5}
        >>> T = ok.optimality.block_proximal_gradient(f, proxes, steps)
        >>> T({"w": jnp.zeros(2), "bias": jnp.zeros(())}, jnp.array([3.0, 0.5]))
        {'bias': Array(1.75, dtype=float32), 'w': Array([2., 0.], dtype=float32)}
    """
    check = Check("ok.optimality.block_proximal_gradient")
    gradient = gradient_of(check, objective)
    sizes = check.prefix("step_sizes", step_sizes, proxes, "proxes")
    for function, size in zip(*map(jax.tree.leaves, (proxes, sizes)), strict=True):
        check.function(proxes=function)
        check.positive(step_sizes=size)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        check.prefix("proxes", proxes, y, "y")

        def step(prox: Any, eta: Any, block: PyTree, grad: PyTree) -> PyTree:
            new = prox(axpy(-jnp.asarray(eta), grad, block), args, eta)
            name = "prox(v, args, step_size)"
            return checked_like(check, name, new, block, "its block")

        return jax.tree.map(step, proxes, sizes, y, gradient(y, args))

    return mapping


def newton(
    residual: Map,
    step_size: ArrayLike = 1.0,
    *,
    solver: lx.AbstractLinearSolver | None = None,
) -> Map:
    """Returns a step of Newton's method for a root of G, the `residual`.

        T(y, args) = y - η [∂_y G(y, args)]⁻¹ G(y, args)

    At a root, ∂_y T = (1 - η) I, so the linear solve of the derivative is trivial; the
    inverse is in ∂T/∂args instead. For a minimum, pass `stationary(objective)` as G.
    `solver` is a method for the Jacobian of G, whose matrix is formed by default. T
    raises if the solve fails.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.newton(lambda y, a: y**2 - a)
        >>> print(T(jnp.array(1.0), jnp.array(2.0)))
        1.5
    """
    check = Check("ok.optimality.newton")
    check.positive(step_size=step_size)
    check.function(residual=residual)
    check.optional.method(solver=solver)
    solver = lx.AutoLinearSolver(well_posed=True) if solver is None else solver

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        check.real(y=y)

        # Lineax gets the leaves, because it cannot rebuild the params of Flax NNX.
        leaves, treedef = jax.tree.flatten(y)

        def at(leaves: list[Any]) -> list[Any]:
            y = treedef.unflatten(leaves)
            value = checked_like(check, "residual(y, args)", residual(y, args), y)
            return jax.tree.leaves(value)

        G, product = linearize(check, at, leaves)
        jacobian = lx.FunctionLinearOperator(product, structure_of(leaves))
        solution = lx.linear_solve(jacobian, G, solver, throw=False)
        result = solution.result
        failed = result != lx.RESULTS.successful
        step = raise_if(failed, solution.value, result.error_if)
        return axpy(-jnp.asarray(step_size), treedef.unflatten(step), y)

    return mapping


def _forward_step(
    check: Check, objective: Objective, step_size: ArrayLike, **functions: Any
) -> Map:
    """The step y - η ∇_y objective(y, args); also checks the map's other functions."""
    check.function(**functions)
    check.positive(step_size=step_size)
    gradient = gradient_of(check, objective)

    def step(y: PyTree, args: PyTree) -> PyTree:
        return axpy(-jnp.asarray(step_size), gradient(y, args), y)

    return step
