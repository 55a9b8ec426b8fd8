"""Hypergradients by the implicit function theorem: y is differentiated, not its path.

A minimiser has ∇_y g(x, y*(x)) = 0 for every x. Differentiated in x, with H = ∇²_yy g
symmetric and J u = ∇_x ⟨∇_y g, u⟩, whose transpose is the derivative of ∇_y g in x,

    Jᵀ + H ∂y*/∂x = 0    so    ∂y*/∂x = -H⁻¹ Jᵀ    and    (∂y*/∂x)ᵀ ∇_y F = -J H⁻¹ ∇_y F

One vjp of (x, y) ↦ ∇_y g against v = H⁻¹ ∇_y F returns J v and H v together: the
latter is what `linear_residual` is read from, of the exact H whatever the method was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from .._check import Check
from .._curvature.hessian import hessian
from .._implicit.linear import method_for_general
from .._inverse.adapter import as_method
from .._inverse.base import AbstractInverse
from .._inverse.inverse import invert
from .._solver.move import Projection
from .._types import Params
from .._vector import axpy, cast_like, explicit_sharding, norm, structure_of, subtract
from ._base import Batch, Batches, Objective, relative_residual, slope_of, upper_slopes
from ._hypergradient import AbstractHypergradient, HypergradientInfo

Curvature = Callable[[Params, Params, Batch], lx.AbstractLinearOperator]
"""(x, y, batch) -> an operator that stands for H."""


class Implicit(AbstractHypergradient):
    """The hypergradient by one linear solve with the Hessian of the lower objective.

        v = P ∇_y F    ∇Φ ≈ ∇_x F - J v    P = (C + λI)⁻¹    C = H = ∇²_yy g

    P is `ok.invert(C, solver, damping=λ)`, so every method for inverses works here:
    `ok.CG()` to tolerance, `ok.Neumann(K, α)` for the derivative of the last K steps of
    gradient descent, `ok.Nystrom(...)`, `lx.Cholesky()`; `ok.OneStep()` is T1-T2.
    It is exact where y minimises g and P is H⁻¹; else its error is of the order of
    |y - y*| and of `linear_residual`. Costs the solve and two gradients of g.

    A solve that fails does not raise: `info.result` names what happened.

    Args:
        solver: how to invert. One of Lineax's is told that C is positive semidefinite.
        damping: λ >= 0, added to C.
        curvature: (x, y, batch) -> C, where another operator is to stand for H, such
            as `ok.gauss_newton(...)`, or `ok.empirical_fisher(...)` for
            `ok.Woodbury()` as in M-FAC. None is the exact Hessian.
        warm_start: in `ok.bilevel.hypergradient_descent`, solve for what the v of the step
            before leaves over, v + P (∇_y F - (C + λI) v): for one more product, few
            terms of a series suffice. The error must shrink, |I - P (C + λI)| < 1,
            as with `ok.CG` and `ok.Neumann`; `ok.OneStep` needs a step < 2/λ_max.

    Raises:
        TypeError: for a solver that is none.
        ValueError: for a negative damping.

    Example:
        >>> import jax.numpy as jnp, lineax as lx, optkit as ok
        >>> def lower(x, y, batch):
        ...     return jnp.sum(y**4) / 4 - jnp.dot(x, y)  # y* = x^(1/3)
        >>> def upper(x, y, batch):
        ...     return jnp.sum(y)
        >>> method = ok.bilevel.Implicit(lx.Cholesky())
        >>> x, y = jnp.array([8.0, 27.0]), jnp.array([2.0, 3.0])
        >>> gradient, info = ok.bilevel.hypergradient(upper, lower, method=method)(x, y, None)
        >>> print((108 * gradient).round(4))  # 1/12 and 1/27
        [9. 4.]

    Reference:
        Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590.
    """

    solver: lx.AbstractLinearSolver
    damping: Any
    curvature: Curvature | None = eqx.field(static=True)
    warm_start: bool = eqx.field(static=True)

    def __init__(
        self,
        solver: lx.AbstractLinearSolver,
        damping: Any = 0.0,
        *,
        curvature: Curvature | None = None,
        warm_start: bool = False,
    ) -> None:
        check = Check("ok.bilevel.Implicit")
        check.method(solver=solver)
        check.non_negative(damping=damping)
        check.optional.function(curvature=curvature)
        self.solver, self.damping = solver, damping
        self.curvature, self.warm_start = curvature, warm_start

    @property
    def moves_y(self) -> bool:
        """False."""
        return False

    def init(self, y: Params) -> PyTree:
        """Zero, for a v that is kept."""
        return jax.tree.map(jnp.zeros_like, y) if self.warm_start else None

    def estimate(
        self,
        objectives: tuple[Objective, Objective],
        x: Params,
        y: Params,
        batches: tuple[Batches, bool],
        memory: PyTree,
    ) -> tuple[Params, HypergradientInfo, PyTree]:
        """One solve, and one vjp of ∇_y g."""
        upper, lower = objectives
        F, F_x, F_y = upper_slopes(upper, x, y, batches[0].upper_x)
        batch = batches[0].lower_x

        arrays, rest = eqx.partition(self, eqx.is_array)

        def solve(
            arrays: Any, x: Params, y: Params, batch: Batch, b: Params, v: PyTree
        ) -> Any:
            method = eqx.combine(arrays, rest)
            C = method._curvature(lower, x, y, batch)
            P = invert(C, method.solver, damping=method.damping)
            if v is None:
                solution = P.solve(b)
                # Lineax's Cholesky returns float32 for a narrower b.
                return cast_like(solution.value, b), solution.result
            solution = P.solve(subtract(b, P.operator.mv(v)))
            added = cast_like(solution.value, b)
            return jax.tree.map(jnp.add, v, added), solution.result

        v, result = _on_auto_axes(solve, y)(arrays, x, y, batch, F_y, memory)
        g, g_y, pull = slope_of(lower, x, y, batch)
        J_v, H_v = pull(v)
        linear_residual = relative_residual(H_v, F_y)
        info = HypergradientInfo(F, g, y, F_x, norm(g_y), linear_residual, result)
        gradient = subtract(F_x, J_v)
        return gradient, info, v if self.warm_start else None

    def _curvature(
        self, lower: Objective, x: Params, y: Params, batch: Batch
    ) -> lx.AbstractLinearOperator:
        if self.curvature is not None:
            return self.curvature(x, y, batch)
        exact = hessian(_OfY(lower), y, x, batch)
        if isinstance(self.solver, AbstractInverse):
            return exact
        return lx.TaggedLinearOperator(exact, lx.positive_semidefinite_tag)


class ImplicitProjected(AbstractHypergradient):
    """The hypergradient where y is constrained: of the projected step it is fixed by.

        y = T(x, y) = project(y - η ∇_y g(x, y))
        u = (I - ∂_y Tᵀ)⁻¹ ∇_y F    ∇Φ ≈ ∇_x F + ∂_x Tᵀ u

    Exact at a minimiser for any η > 0, where the projection is differentiable: in the
    interior, and where constraints are active with a multiplier that is not zero. The
    system is not symmetric. `residual` is |y - T(x, y)| / η.

    Args:
        project_y: onto the constraint set, a function as in `optax.projections`.
        step_size: η > 0; the system is best conditioned near 1/λ_max(H).
        solver: for systems that are not symmetric, as `ok.implicit_fixed_point` takes
            them: `lx.LU()` where the matrix is small; `ok.Neumann(K)` for the
            derivative of the last K projected steps. `ok.GMRES()` if None.

    Raises:
        TypeError: for a projection or solver that is none.
        ValueError: for a step size that is not positive, or a method for symmetric
            systems.

    Example:
        >>> import jax.numpy as jnp, lineax as lx, optax, optkit as ok
        >>> def lower(x, y, batch):
        ...     return 0.5 * jnp.sum((y - x) ** 2)
        >>> def upper(x, y, batch):
        ...     return jnp.sum(3 * y)
        >>> positive = optax.projections.projection_non_negative
        >>> method = ok.bilevel.ImplicitProjected(positive, 0.5, lx.LU())
        >>> x = jnp.array([1.0, -1.0])  # y* = max(x, 0)
        >>> gradient, _ = ok.bilevel.hypergradient(upper, lower, method=method)(
        ...     x, positive(x), None)
        >>> print(gradient.round(4))
        [3. 0.]

    Reference:
        Blondel et al. 2022, arXiv:2105.15183, section 2.2.
    """

    project_y: Projection = eqx.field(static=True)
    step_size: Any
    solver: lx.AbstractLinearSolver

    def __init__(
        self,
        project_y: Projection,
        step_size: Any,
        solver: lx.AbstractLinearSolver | None = None,
    ) -> None:
        check = Check("ok.bilevel.ImplicitProjected")
        check.function(project_y=project_y)
        check.positive(step_size=step_size)
        self.solver = method_for_general(check, solver, 1.0)
        self.project_y, self.step_size = project_y, step_size

    @property
    def moves_y(self) -> bool:
        """False."""
        return False

    def init(self, y: Params) -> PyTree:
        """Nothing."""

    def estimate(
        self,
        objectives: tuple[Objective, Objective],
        x: Params,
        y: Params,
        batches: tuple[Batches, bool],
        memory: PyTree,
    ) -> tuple[Params, HypergradientInfo, PyTree]:
        """One solve with products of the transposed derivative of T."""
        upper, lower = objectives
        F, F_x, F_y = upper_slopes(upper, x, y, batches[0].upper_x)
        batch = batches[0].lower_x
        eta = jnp.asarray(self.step_size, jnp.result_type(float))

        def mapping(x: Params, y: Params) -> tuple[Params, Array]:
            g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, batch)
            projected = self.project_y(axpy(-eta, g_y, y))
            Check("ok.bilevel.ImplicitProjected").like(
                "project_y(y)", projected, y, "y"
            )
            return projected, g

        image, pull, g = jax.vjp(mapping, x, y, has_aux=True)

        def product(u: Params) -> Params:
            return subtract(u, pull(u)[1])

        operator = lx.FunctionLinearOperator(product, structure_of(y))
        method = as_method(self.solver)
        u, result, _ = method.apply(*method.init(operator, {}), F_y)
        through = pull(u)[0]
        step = norm(subtract(y, image))
        residual = step / eta.astype(step.dtype)
        linear_residual = relative_residual(product(u), F_y)
        info = HypergradientInfo(F, g, y, F_x, residual, linear_residual, result)
        return jax.tree.map(jnp.add, F_x, through), info, memory


def _on_auto_axes(solve: Callable[..., Any], y: Params) -> Callable[..., Any]:
    """The function, with explicit mesh axes turned to automatic ones inside.

    Lineax's solve forgets shardings that are part of a type.

    Returns:
        A function that returns a tree sharded as y, and a replicated one.
    """
    shardings = jax.tree.map(explicit_sharding, y)
    if not (given := jax.tree.leaves(shardings)):
        return solve
    whole = NamedSharding(given[0].mesh, PartitionSpec())
    return jax.sharding.auto_axes(solve, out_sharding=(shardings, whole))


@dataclass(frozen=True)
class _OfY:
    """g as a function of y first; equal for equal g, so that operators compile once."""

    lower: Objective

    def __call__(self, y: Params, x: Params, batch: Batch) -> Float[Array, ""]:
        return self.lower(x, y, batch)
