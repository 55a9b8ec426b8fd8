"""What the first-order methods share: two lower iterates, and a hypergradient of both.

The value-function reformulation of min_x f(x, y*(x)) penalises what y leaves of the
lower problem by λ. With y a minimiser of f/λ + g and z one of g, Danskin's theorem is

    ∇_x min_y [f(x, y) + λ (g(x, y) - min_z g(x, z))]
        = ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]

without a second derivative. The two lower gradients nearly cancel, so they are always
of one batch and from one call of `jax.grad`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from .._results import (
    RESULTS,
    first_failure,
)
from .._types import (
    Params,
    wide_dtype,
)
from .._vector import (
    all_finite,
    common_dtype,
    norm,
    where,
)
from ._base import (
    Batch,
    BilevelInfo,
    Objective,
    Projection,
    check_kept,
    check_transform,
    objectives_of,
    residual_of,
)
from ._schedules import Penalty

_RESOLVED = 8.0  # rounding errors by which y and z must differ, for an error of 1/8
from .._vector import axpy


class Oracles(NamedTuple):
    """The gradients that first-order methods ask for."""

    upper_y: Callable[[Params, Params, Batch], Params]  # ∇_y f(x, y)
    lower_y: Callable[[Params, Params, Batch], Params]  # ∇_y g(x, y)
    # f(x, y) and ∇_x f(x, y)
    upper_x: Callable[[Params, Params, Batch], tuple[Array, Params]]
    # g(x, y) and ∇_x [g(x, y) - g(x, z)]
    lower_x: Callable[[Params, Params, Params, Batch], tuple[Array, Params]]


def oracles(call: str, upper: Objective, lower: Objective) -> Oracles:
    """Makes the gradients, of functions checked to return scalars."""
    f, g = objectives_of(call, upper, lower)

    def gap(x: Params, y: Params, z: Params, batch: Batch) -> tuple[Array, Array]:
        value = g(x, y, batch)
        return value - g(x, z, batch), value

    def lower_x(x: Params, y: Params, z: Params, batch: Batch) -> tuple[Array, Params]:
        (_, value), grads = jax.value_and_grad(gap, has_aux=True)(x, y, z, batch)
        return value, grads

    return Oracles(
        upper_y=jax.grad(f, argnums=1),
        lower_y=jax.grad(g, argnums=1),
        upper_x=jax.value_and_grad(f),
        lower_x=lower_x,
    )


class Move(NamedTuple):
    """How one variable moves: an optax transform, then a projection if there is one."""

    call: str  # for messages
    tx: optax.GradientTransformationExtraArgs
    project: Projection | None

    def __call__(
        self, grads: Params, memory: PyTree, params: Params, state: Any
    ) -> tuple[Params, PyTree]:
        """The variable after one step, and the transform's memory."""
        # Functions of these alone are the same in all inner steps: XLA hoists them.
        extra = {"penalty": state.penalty, "count": state.count}
        updates, new_memory = self.tx.update(grads, memory, params, **extra)
        check_kept(self.call, "a transform returned a state", new_memory, memory)
        moved = optax.apply_updates(params, updates)
        if self.project is not None:
            moved = self.project(moved)
            check_kept(self.call, "a projection returned a tree", moved, params)
        return moved, new_memory

    def residual(self, grads: Params, params: Params) -> Float[Array, ""]:
        """|grads|, or where there is a constraint that of the projected step."""
        return residual_of(grads, params, self.project)


def move(call: str, name: str, tx: Any, project: Projection | None) -> Move:
    """Checks that a transform is one, and puts a projection after it."""
    check_transform(call, name, tx)
    if project is not None and not callable(project):
        raise TypeError(
            f"`{call}` needs a function for its projection, got {project!r}. Pass one "
            f"from a variable to the nearest allowed, as in `optax.projections`."
        )
    return Move(call, optax.with_extra_args_support(tx), project)


def zero_residual(tree: PyTree) -> Float[Array, ""]:
    """Zero in the dtype of `norm`."""
    return jnp.zeros([], common_dtype(tree))


def conclude(
    old: Any,
    new: Any,
    penalty: Penalty,
    lower_iterates: tuple[Params, Params],
    info: BilevelInfo,
) -> tuple[Any, BilevelInfo]:
    """Advances penalty and count, says in `info` what is wrong, and guards the state.

    Args:
        old: the state before the step; its fields include `count` and `penalty`.
        new: the state after it, with the count and penalty of before.
        penalty: how λ goes on.
        lower_iterates: the y and z of the hypergradient.
        info: of the step, but for its `result`.

    Returns:
        The new state, or the old one where something is not finite, and the info. Count
        and penalty go on in any case, so that the next batch is another one.
    """
    k, lam = old.count, old.penalty
    y, z = lower_iterates
    gap, rounding = norm(axpy(-1.0, z, y)), norm(_roundings(y))
    # All of it: second moments overflow before the variables do.
    is_finite = all_finite(new) & jnp.isfinite(info.hypergradient_norm)
    is_positive = jnp.isfinite(lam) & (lam > 0)
    result = first_failure(
        (~is_positive, RESULTS.bad_penalty),
        (~is_finite, RESULTS.nonfinite_gradient),
        (_cancels(y, gap, rounding, lam), RESULTS.cancellation),
        (~penalty.is_within(k, lam), RESULTS.schedule_bounds),
    )
    kept = where(is_positive & is_finite, new, old)
    kept = kept._replace(count=k + 1, penalty=penalty.next(k, lam))
    return kept, info._replace(result=result)


def _cancels(y: Params, gap: Array, rounding: Array, lam: Array) -> Bool[Array, ""]:
    """Whether y and z agree to rounding, under a penalty that makes them."""
    leaves = jax.tree.leaves(y)
    eps = max((float(jnp.finfo(leaf.dtype).eps) for leaf in leaves), default=0.0)
    # Below 1 / sqrt(eps) they agree for another reason, such as ∇_y f = 0 at z.
    is_large = lam * eps**0.5 > 1
    return is_large & (rounding > 0) & (gap <= _RESOLVED * rounding)


def _roundings(y: Params) -> Params:
    """What rounding does to each entry of y, at most: eps |y|, in float32 or wider."""

    def one(leaf: Array) -> Array:
        return leaf.astype(wide_dtype(leaf)) * float(jnp.finfo(leaf.dtype).eps)

    return jax.tree.map(one, y)
