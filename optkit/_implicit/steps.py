"""Steps of methods whose fixed point is a solution: part of `ok.optimality`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import ArrayLike, PyTree

from .._check import Check
from .._vector import axpy
from .pieces import Map, Objective, Prox, checked_like, gradient_of


def gradient_descent(objective: Objective, step_size: ArrayLike = 1.0) -> Map:
    """One step of gradient descent.

        T(y, args) = y - η ∇_y objective(y, args)

    Args:
        objective: `(y, args)` to a real scalar.
        step_size: η.

    Returns:
        A mapping, for `ok.implicit_fixed_point`.

    Raises:
        ValueError: for a step size that is not positive.
    """
    return _forward_step(Check("ok.optimality.gradient_descent"), objective, step_size)


def projected_gradient(
    objective: Objective,
    projection: Callable[[PyTree, PyTree], PyTree],
    step_size: ArrayLike = 1.0,
) -> Map:
    """One step of projected gradient descent: minima over a convex set.

        T(y, args) = projection(y - η ∇_y objective(y, args), args)

    Args:
        objective: `(y, args)` to a real scalar.
        projection: `(v, args)` to the nearest point of the set, as `ok.projections`
            and `optax.projections` have them.
        step_size: η.

    Returns:
        A mapping, for `ok.implicit_fixed_point`.

    Raises:
        ValueError: for a step size that is not positive, or a projection that
            returns another structure or shape.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> T = ok.optimality.projected_gradient(
        ...     lambda y, c: 0.5 * jnp.sum((y - c) ** 2),
        ...     lambda v, c: optax.projections.projection_non_negative(v),
        ... )
        >>> print(T(jnp.array([5.0, 5.0]), jnp.array([2.0, -1.0])))
        [2. 0.]
    """
    check = Check("ok.optimality.projected_gradient")
    step = _forward_step(check, objective, step_size)
    check.function(projection=projection)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        return checked_like(check, "projection", projection(step(y, args), args), y)

    return mapping


def proximal_gradient(
    objective: Objective, prox: Prox, step_size: ArrayLike = 1.0
) -> Map:
    """One step of proximal gradient descent: minima of objective + r, r non-smooth.

        T(y, args) = prox(y - η ∇_y objective(y, args), args, η)

    Args:
        objective: the smooth part, `(y, args)` to a real scalar.
        prox: `(v, args, η)` to argmin_y ½|y - v|² + η r(y, args), as from `ok.prox`.
        step_size: η.

    Returns:
        A mapping, for `ok.implicit_fixed_point`.

    Raises:
        ValueError: for a step size that is not positive, or a prox that returns
            another structure or shape.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.proximal_gradient(
        ...     lambda y, args: 0.5 * jnp.sum((y - args["c"]) ** 2),
        ...     lambda v, args, t: ok.prox.lasso(v, args["l1"], t),
        ... )
        >>> print(T(jnp.zeros(2), {"c": jnp.array([2.0, -0.5]), "l1": 1.0}))
        [ 1. -0.]
    """
    check = Check("ok.optimality.proximal_gradient")
    step = _forward_step(check, objective, step_size)
    check.function(prox=prox)

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        v = step(y, args)
        return checked_like(check, "prox", prox(v, args, step_size), y)

    return mapping


def block_proximal_gradient(
    objective: Objective, proxes: PyTree, step_sizes: PyTree = 1.0
) -> Map:
    """A proximal gradient step whose prox and step size depend on the block of y.

        T(y, args)_j = prox_j(y_j - η_j ∇_j objective(y, args), args, η_j)

    All blocks step from the same y. The fixed points are those of block coordinate
    descent, whatever its order.

    Args:
        objective: the smooth part, `(y, args)` to a real scalar.
        proxes: functions `(v, args, η)` in a prefix of y: the subtree of y where a
            function stands is its block. `ok.prox.none` leaves a block smooth.
        step_sizes: η_j in the structure of `proxes`, or one number for all.

    Returns:
        A mapping, for `ok.implicit_fixed_point`.

    Raises:
        ValueError: for a step size that is not positive, another structure of
            `step_sizes`, or a prox that returns another structure or shape; and
            when called, for a `proxes` that is no prefix of y.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.block_proximal_gradient(
        ...     lambda y, c: 0.5 * jnp.sum((y["w"] + y["bias"] - c) ** 2),
        ...     {"w": lambda v, c, t: ok.prox.lasso(v, 1.0, t), "bias": ok.prox.none},
        ...     {"w": 1.0, "bias": 0.5},
        ... )
        >>> y = {"w": jnp.zeros(2), "bias": jnp.zeros(())}
        >>> print(T(y, jnp.array([3.0, 0.5])))
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
            v = axpy(-jnp.asarray(eta), grad, block)
            return checked_like(check, "prox", prox(v, args, eta), block)

        return jax.tree.map(step, proxes, sizes, y, gradient(y, args))

    return mapping


def newton(
    residual: Map,
    step_size: ArrayLike = 1.0,
    *,
    solver: lx.AbstractLinearSolver | None = None,
) -> Map:
    """One step of Newton's method for a root.

        T(y, args) = y - η [∂_y G(y, args)]⁻¹ G(y, args)

    At a root, ∂_y T = (1 - η) I: the linear solve of the derivative is trivial, and
    the inverse is in ∂T/∂args instead. For a minimum, G is `stationary(objective)`.

    Args:
        residual: G, `(y, args)` to a tree like y.
        step_size: η.
        solver: a Lineax solver for the Jacobian of G. None forms its matrix.

    Returns:
        A mapping, for `ok.implicit_fixed_point`. A solve that fails raises.

    Raises:
        ValueError: for a step size that is not positive, or a residual of another
            structure or shape than y.

    Example:
        >>> import jax.numpy as jnp, optkit as ok
        >>> T = ok.optimality.newton(lambda y, a: y**2 - a)
        >>> print(T(jnp.array(1.0), jnp.array(2.0)))
        1.5
    """
    check = Check("ok.optimality.newton")
    check.positive(step_size=step_size)
    check.function(residual=residual)
    solver = lx.AutoLinearSolver(well_posed=True) if solver is None else solver

    def mapping(y: PyTree, args: PyTree) -> PyTree:
        def at(y: PyTree, _: Any) -> PyTree:
            return checked_like(check, "residual", residual(y, args), y)

        jacobian = lx.JacobianLinearOperator(at, y, None)
        step = lx.linear_solve(jacobian, at(y, None), solver).value
        return axpy(-jnp.asarray(step_size), step, y)

    return mapping


def _forward_step(check: Check, objective: Objective, step_size: ArrayLike) -> Map:
    """The step y - η ∇_y objective(y, args)."""
    check.positive(step_size=step_size)
    gradient = gradient_of(check, objective)

    def step(y: PyTree, args: PyTree) -> PyTree:
        return axpy(-jnp.asarray(step_size), gradient(y, args), y)

    return step
