"""F2SA: bilevel optimization with gradients alone, by a penalty that grows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._check import check_positive_int
from .._solver.solver import Solver
from .._types import Params
from .._vector import (
    axpy,
    norm,
    strong,
)
from ._base import (
    Batch,
    BilevelInfo,
    Objective,
    Projection,
    batches_of,
    check_variables,
    repeat,
)
from ._penalized import (
    conclude,
    move,
    oracles,
    zero_residual,
)
from ._schedules import as_penalty


class F2saState(NamedTuple):
    """What F2SA's next step needs."""

    count: Int[Array, ""]
    x: Params
    y: Params  # near the minimiser of f/λ + g
    z: Params  # near that of g
    penalty: Float[Array, ""]  # λ_k
    outer: PyTree  # the states of the transforms of x, y and z
    inner_y: PyTree
    inner_z: PyTree


def f2sa(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    penalty: Any,
    inner_y: optax.GradientTransformation | None = None,
    inner_steps: int = 1,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by first-order steps, with a penalty that may grow.

    With f the upper and g the lower objective, λ the penalty, and each ← a step of the
    transform that its right-hand side is handed to,

        T times:  z ← ∇_y g(x, z)
                  y ← ∇_y f(x, y) / λ + ∇_y g(x, y)
        x ← ∇_x f(x, y) + λ ∇_x [g(x, y) - g(x, z)]
        λ_{k+1} = λ_k + δ_k

    so a step costs T (2 ∇_y g + ∇_y f) + ∇_x f + 2 ∇_x g, and no second derivative. A
    state holds x, y, z and the states of their transforms.

    Transforms: `inner` moves z, and y too unless `inner_y` is given, each with its own
    state. y sees its gradient divided by λ, whose curvature stays that of g, however
    far λ grows: a step size that is stable for z is stable for y. The paper's y step is
    α of ∇f + λ∇g; that is the same with the step size β = αλ, which its theory keeps
    below that of z, and `inner_y=optax.chain(ok.bilevel.scale_by_penalty(), optax.sgd(alpha))`
    writes it so. What y and z lack is multiplied by λ: as λ grows, x must move slower,
    or `inner_steps` be more. Noise is multiplied too, but for what y and z have in
    common: in an `ok.bilevel.Batches`, give `lower_y` and `lower_z` the same samples.

    Penalty: the fixed point is biased by O(1/λ), and rounding by O(λ eps), so that a
    λ beyond 1 / sqrt(eps) is of no use (3e3 in float32, 11 in bfloat16). A constant
    converges faster, to a point biased by 1/λ. With `ok.bilevel.f2sa_schedule` the steps and
    penalty are the theory's. `info.result` says if steps or penalty leave the bounds
    of that schedule, if a penalty given as a function falls, if y and z agree to
    rounding, and if a gradient was NaN, in which case x, y and z stay where they were.

    Departs: (1) y's transform sees its gradient divided by λ; (2) the constraint sets
    of x and y, which the paper does not have, are projected on.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar, strongly convex in y for what the theory says.
        outer: the transform of x.
        inner: the transform of z and y.
        penalty: λ, a number > 0, a function of the step, or an `ok.bilevel.PenaltySchedule`.
        inner_y: the transform of y, if it is another. It gets `penalty=` too.
        inner_steps: T, the steps of y and z in one step of x.
        project_x: onto the constraint set of x, after each step.
        project_y: onto that of y, after each inner step of y and z.

    Returns:
        An `ok.Solver` whose state is an `ok.bilevel.F2saState`. Its `step` is jitted; it
        takes one batch for all gradients, or an `ok.bilevel.Batches` with a batch for each.

    Raises:
        ValueError: for a penalty that is not positive; in `step`, for objectives that
            are not scalar.
        TypeError: for transforms that are none; in `init`, for leaves that are not
            real floating.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def upper(x, y, batch):
        ...     return jnp.sum((y - 1) ** 2) / 2
        >>> def lower(x, y, batch):
        ...     return jnp.sum((y - x) ** 2) / 2
        >>> outer, inner = optax.sgd(0.2), optax.sgd(0.5)
        >>> solver = ok.bilevel.f2sa(
        ...     upper, lower, outer=outer, inner=inner, penalty=10.0, inner_steps=5
        ... )
        >>> state = solver.init(jnp.zeros(()), jnp.zeros(()))
        >>> for _ in range(50):
        ...     state, info = solver.step(state, None)
        >>> print(f"{state.x:.3f}")
        1.000

    Reference:
        Kwon et al. 2023, arXiv:2301.10945, Algorithm F2SA.
    """
    call = "ok.bilevel.f2sa"
    check_positive_int(call, "inner_steps", inner_steps)
    schedule = as_penalty(call, "penalty", penalty)
    grad = oracles(call, upper, lower)
    move_x = move(call, "outer", outer, project_x)
    move_z = move(call, "inner", inner, project_y)
    move_y = move(call, "inner_y", inner if inner_y is None else inner_y, project_y)

    def init(x: Params, y: Params) -> F2saState:
        check_variables(call, x, y)
        x, y, z = strong(x), strong(y), strong(y)
        return F2saState(
            count=jnp.zeros([], jnp.int32),
            x=x,
            y=y,
            z=z,
            penalty=schedule.initial(),
            outer=move_x.tx.init(x),
            inner_y=move_y.tx.init(y),
            inner_z=move_z.tx.init(z),
        )

    def step(state: F2saState, batch: Batch) -> tuple[F2saState, BilevelInfo]:
        batches, is_shared = batches_of(batch)
        x, lam = state.x, state.penalty

        def inner_step(carry: PyTree, batch: PyTree) -> PyTree:
            y, y_state, z, z_state, _ = carry
            upper_y, lower_y, lower_z = batch
            g_z = grad.lower_y(x, z, lower_z)
            g_y = grad.lower_y(x, y, lower_y)
            d_y = axpy(1 / lam, grad.upper_y(x, y, upper_y), g_y)
            z_new, z_state = move_z(g_z, z_state, z, state)
            y, y_state = move_y(d_y, y_state, y, state)
            return y, y_state, z_new, z_state, move_z.residual(g_z, z)

        y, inner_y, z, inner_z, residual = repeat(
            inner_step,
            (state.y, state.inner_y, state.z, state.inner_z, zero_residual(state.z)),
            (batches.upper_y, batches.lower_y, batches.lower_z),
            num_steps=inner_steps,
            is_shared=is_shared,
        )
        upper_value, f_x = grad.upper_x(x, y, batches.upper_x)
        lower_value, g_x = grad.lower_x(x, y, z, batches.lower_x)
        d_x = axpy(lam, g_x, f_x)
        x_new, outer_state = move_x(d_x, state.outer, x, state)
        new = state._replace(
            x=x_new, y=y, z=z, outer=outer_state, inner_y=inner_y, inner_z=inner_z
        )
        info = BilevelInfo(upper_value, lower_value, norm(d_x), residual, lam, None)
        return conclude(state, new, schedule, (y, z), info)

    return Solver(init, jax.jit(step))
