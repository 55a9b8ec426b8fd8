"""Hypergradients by the implicit function theorem.

A minimiser satisfies ∇_y g(x, y*(x)) = 0 for every x. Differentiate this in x, with
H = ∇²_yy g and J u = ∇_x ⟨∇_y g, u⟩, so that Jᵀ is the derivative of ∇_y g in x:

    Jᵀ + H ∂y*/∂x = 0    so    ∂y*/∂x = -H⁻¹ Jᵀ    and    (∂y*/∂x)ᵀ ∇_y F = -J H⁻¹ ∇_y F

One vjp of (x, y) ↦ ∇_y g against v = H⁻¹ ∇_y F returns both J v and H v. H v gives
`linear_residual`, always with the exact H.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

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
from ._base import Batch, Batches, Objective, lower_gradient, relative_residual
from ._hypergradient import AbstractHypergradient, Pulled, Response

Curvature = Callable[[Params, Params, Batch], lx.AbstractLinearOperator]
"""(x, y, batch) -> an operator that stands for H."""


class Implicit(AbstractHypergradient):
    """The hypergradient by one linear solve with the Hessian of the lower objective.

        v = P ∇_y F    ∇Φ ≈ ∇_x F - J v    P = (C + λI)⁻¹    C = H = ∇²_yy g

    P is `ok.invert(C, solver, damping=λ)`, so every inverse works here: `ok.CG()` to a
    tolerance, `ok.Neumann(K, α)` for the derivative of the last K steps of gradient
    descent, `ok.Nystrom(...)`, `lx.Cholesky()`; `ok.OneStep()` is T1-T2. The result is
    exact if y minimises g and P is H⁻¹; otherwise its error is of the order of |y - y*|
    and of `linear_residual`. It costs the solve and two gradients of g.

    A failed solve does not raise: see `info.result`.

    Args:
        solver: the method of the inverse. For Lineax's methods, C is tagged positive
            semidefinite.
        damping: λ >= 0, added to C.
        curvature: (x, y, batch) -> C, an operator to use instead of H, such as
            `ok.gauss_newton(...)`, or `ok.empirical_fisher(...)` for `ok.Woodbury()`
            as in M-FAC. Default is the exact Hessian.
        warm_start: in `ok.bilevel.hypergradient_descent`, start from the v of the last
            step: v + P (∇_y F - (C + λI) v). This costs one more product, and then a
            few terms of a series are enough. It needs |I - P (C + λI)| < 1, which holds
            for `ok.CG` and `ok.Neumann`; `ok.OneStep` needs a step size < 2/λ_max.

    Example:
        >>> import jax.numpy as jnp, lineax as lx, optkit as ok
        >>> def lower(x, y, batch):
        ...     return jnp.sum(y**4) / 4 - jnp.dot(x, y)  # y* = x^(1/3)
        >>> upper = lambda x, y, batch: jnp.sum(y)
        >>> method = ok.bilevel.Implicit(lx.Cholesky())
        >>> gradient = ok.bilevel.hypergradient(upper, lower, method=method)
        >>> value, info = gradient(jnp.array([8.0, 27.0]), jnp.array([2.0, 3.0]), None)
        >>> print((108 * value).round(4))  # 1/12 and 1/27
        [9. 4.]

    Reference:
        Lorraine, Vicol and Duvenaud 2020, arXiv:1911.02590.
    """

    moves_y: ClassVar[bool] = False
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

    def init(self, y: Params) -> PyTree:
        """The first v, zero, if v is kept."""
        return jax.tree.map(jnp.zeros_like, y) if self.warm_start else None

    def response(
        self, lower: Objective, x: Params, y: Params, batches: Batches, memory: PyTree
    ) -> Response:
        """One solve, and one vjp of ∇_y g."""
        batch = batches.lower_x
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

        def pull(b: Params) -> Pulled:
            v, result = _on_auto_axes(solve, y)(arrays, x, y, batch, b, memory)
            g, g_y, products = lower_gradient(lower, x, y, batch)
            J_v, H_v = products(v)
            value = jax.tree.map(jnp.negative, J_v)
            kept = v if self.warm_start else None
            linear_residual = relative_residual(H_v, b)
            return Pulled(value, g, norm(g_y), linear_residual, result, kept)

        return y, pull

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
    """The hypergradient for constrained y, a fixed point of the projected step T.

        y = T(x, y) = project(y - η ∇_y g(x, y))
        u = (I - ∂_y Tᵀ)⁻¹ ∇_y F    ∇Φ ≈ ∇_x F + ∂_x Tᵀ u

    It is exact at a minimiser for any η > 0 if the projection is differentiable there:
    in the interior, and where constraints are active with nonzero multipliers. The
    system is not symmetric. `info.residual_norm` is |y - T(x, y)| / η.

    Args:
        project_y: onto the constraint set, a function as in `optax.projections`.
        step_size: η > 0. The system is best conditioned near 1/λ_max(H).
        solver: a method for systems that are not symmetric, as for
            `ok.implicit_fixed_point`, with the same default. `ok.Neumann(K)` gives the
            derivative of the last K projected steps.

    Raises:
        ValueError: if the method is for symmetric systems.

    Example:
        >>> import jax.numpy as jnp, lineax as lx, optax, optkit as ok
        >>> lower = lambda x, y, batch: 0.5 * jnp.sum((y - x) ** 2)
        >>> upper = lambda x, y, batch: jnp.sum(3 * y)
        >>> positive = optax.projections.projection_non_negative
        >>> method = ok.bilevel.ImplicitProjected(positive, 0.5, lx.LU())
        >>> gradient = ok.bilevel.hypergradient(upper, lower, method=method)
        >>> x = jnp.array([1.0, -1.0])  # y* = max(x, 0)
        >>> print(gradient(x, positive(x), None)[0].round(4))
        [3. 0.]

    Reference:
        Blondel et al. 2022, arXiv:2105.15183, section 2.2.
    """

    moves_y: ClassVar[bool] = False
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

    def init(self, y: Params) -> PyTree:
        """Nothing."""

    def response(
        self, lower: Objective, x: Params, y: Params, batches: Batches, memory: PyTree
    ) -> Response:
        """One solve with products of the transposed derivative of T."""
        eta = jnp.asarray(self.step_size, jnp.result_type(float))

        def mapping(x: Params, y: Params) -> tuple[Params, Array]:
            g, g_y = jax.value_and_grad(lower, argnums=1)(x, y, batches.lower_x)
            image = self.project_y(axpy(-eta, g_y, y))
            check = Check("ok.bilevel.ImplicitProjected")
            check.like("project_y(y)", image, y, "y")
            return image, g

        image, products, g = jax.vjp(mapping, x, y, has_aux=True)

        def transposed(u: Params) -> Params:
            return subtract(u, products(u)[1])

        def pull(b: Params) -> Pulled:
            operator = lx.FunctionLinearOperator(transposed, structure_of(y))
            method = as_method(self.solver)
            u, result, _ = method.apply(*method.init(operator, {}), b)
            step = norm(subtract(y, image))
            residual_norm = step / eta.astype(step.dtype)
            linear_residual = relative_residual(transposed(u), b)
            return Pulled(products(u)[0], g, residual_norm, linear_residual, result)

        return y, pull


def _on_auto_axes(solve: Callable[..., Any], y: Params) -> Callable[..., Any]:
    """Returns the function with explicit mesh axes made automatic inside.

    Lineax's solve forgets shardings that are part of a type. The new function returns a
    pytree sharded like y, and a replicated one.
    """
    shardings = jax.tree.map(explicit_sharding, y)
    if not (given := jax.tree.leaves(shardings)):
        return solve
    whole = NamedSharding(given[0].mesh, PartitionSpec())
    return jax.sharding.auto_axes(solve, out_sharding=(shardings, whole))


@dataclass(frozen=True)
class _OfY:
    """g with y as first argument. Equal for equal g, so that operators compile once."""

    lower: Objective

    def __call__(self, y: Params, x: Params, batch: Batch) -> Float[Array, ""]:
        return self.lower(x, y, batch)
