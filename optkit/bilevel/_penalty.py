"""A proximal penalty method for bilevel problems that need not be convex below."""

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
from ._proximal import as_proximal
from ._schedules import as_sigma


class PenaltyState(NamedTuple):
    """What the penalty method's next step needs."""

    count: Int[Array, ""]
    x: Params
    y: Params  # the centre for σf + g
    z: Params  # the centre for g
    penalty: Float[Array, ""]  # 1/σ_k
    outer: PyTree  # the states of the transforms of x, u and w
    inner_y: PyTree
    inner_z: PyTree


def penalty(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    sigma: Any,
    inner_steps: int,
    prox_step: Any = None,
    averaging: Any = 1.0,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Solves a bilevel problem by proximal-point steps on both of its lower problems.

    With f the upper and g the lower objective, X and Y the constraint sets, and
    h = σf + g, it minimises over X

        ψ_σ(x) = (min_{u in Y} h(x, u) - min_{w in Y} g(x, w)) / σ

    which tends to the smallest f(x, y) among the minimisers y in Y of g(x, ·). There
    may be many of those, and neither f nor g needs to be convex in y. From u = y and
    w = z, and with each ← a step of the transform that its right-hand side goes to,

        T times:  w ← ∇_y g(x, w) + (w - z)/ρ            then onto Y
                  u ← σ ∇_y f(x, u) + ∇_y g(x, u) + (u - y)/ρ   then onto Y
        z ← (1-β) z + β w        y ← (1-β) y + β u
        x ← ∇_x f(x, u) + ∇_x [g(x, u) - g(x, w)] / σ    then onto X

    The hypergradient is biased by O(σ), and 1/σ multiplies what u and w lack: they must
    be within about σ² of their minimisers for its error to be O(σ). So take inner steps
    enough, and x last: its steps are the shortest, those of the centres y, z next. 1/ρ
    should exceed the most negative curvature of g and h in y; where both are convex,
    None, no proximal term, is fastest. With None and β = 1 this is `ok.bilevel.f2sa`.

    What is chosen, where the source leaves room: (1) ∇_x is taken at u and w and not at
    the centres, where the proximal term is zero at convergence: then u and w are
    stationary for h and g, and the x step is ∇ψ_σ by Danskin's theorem; (2) u and w
    share their step size; (3) the samples of both ∇_x g are the same; (4) transforms
    in the place of steps. The limits are those of the closed forms, also with a
    constraint that is active and with a g whose minimisers are a line.

    `info` is as of `ok.bilevel.f2sa`: its `penalty` is 1/σ, its `residual` of w, and
    `info.result` says if σ rises or is not positive.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar.
        outer: the transform of x.
        inner: the transform of u and w, each with a state of its own. A projection
            after a transform that scales coordinates differently, such as Adam, is
            not a projected gradient step: with constraints take `optax.sgd`.
        sigma: σ, a number > 0 or a function of the step: `ok.bilevel.sigma_schedule(...)`.
        inner_steps: T.
        prox_step: ρ, a number > 0, or None for no proximal term.
        averaging: β, a number in (0, 1].
        project_x: onto X, after each step of x.
        project_y: onto Y, after each inner step.

    Returns:
        An `ok.Solver` whose state is an `ok.bilevel.PenaltyState`. Its `step` is jitted;
        it takes one batch for all gradients, or an `ok.bilevel.Batches` with a batch for each.

    Raises:
        ValueError: for a sigma or a prox_step that is not positive, or an averaging
            outside (0, 1]; in `step`, for objectives that are not scalar.
        TypeError: for transforms that are none; in `init`, for leaves that are not
            real floating.

    Example:
        >>> import jax, jax.numpy as jnp, optax, optkit as ok
        >>> def upper(x, y, batch):
        ...     return (y - 1) ** 2 / 2 + (x + 1) ** 2 / 2
        >>> def lower(x, y, batch):
        ...     return (y - x) ** 2 / 2  # over y >= 0, so y*(x) = max(x, 0)
        >>> sgd = optax.sgd(0.5)
        >>> solver = ok.bilevel.penalty(
        ...     upper, lower, outer=sgd, inner=sgd, sigma=0.1, inner_steps=10,
        ...     project_y=optax.projections.projection_non_negative,
        ... )
        >>> state = solver.init(jnp.array(-0.5), jnp.array(0.0))
        >>> for _ in range(30):
        ...     state, info = solver.step(state, None)
        >>> print(f"{state.x:.3f} {state.y:.3f}")
        -1.000 0.000

    Reference:
        Kwon et al. 2023, arXiv:2309.01753, the double-loop algorithm.
    """
    call = "ok.bilevel.penalty"
    check_positive_int(call, "inner_steps", inner_steps)
    schedule = as_sigma(call, sigma)
    proximal = as_proximal(call, prox_step, averaging)
    grad = oracles(call, upper, lower)
    move_x = move(call, "outer", outer, project_x)
    move_y = move(call, "inner", inner, project_y)

    def init(x: Params, y: Params) -> PenaltyState:
        check_variables(call, x, y)
        x, y, z = strong(x), strong(y), strong(y)
        memories = move_x.tx.init(x), move_y.tx.init(y), move_y.tx.init(z)
        count = jnp.zeros([], jnp.int32)
        return PenaltyState(count, x, y, z, schedule.initial(), *memories)

    def step(state: PenaltyState, batch: Batch) -> tuple[PenaltyState, BilevelInfo]:
        batches, is_shared = batches_of(batch)
        x, y, z, lam = state.x, state.y, state.z, state.penalty

        def inner_step(carry: PyTree, batch: PyTree) -> PyTree:
            u, u_state, w, w_state, _ = carry
            upper_y, lower_y, lower_z = batch
            d_w = proximal.pull(grad.lower_y(x, w, lower_z), w, z)
            h_u = axpy(
                1 / lam, grad.upper_y(x, u, upper_y), grad.lower_y(x, u, lower_y)
            )
            d_u = proximal.pull(h_u, u, y)
            w_new, w_state = move_y(d_w, w_state, w, state)
            u, u_state = move_y(d_u, u_state, u, state)
            return u, u_state, w_new, w_state, move_y.residual(d_w, w)

        u, inner_y, w, inner_z, residual = repeat(
            inner_step,
            (y, state.inner_y, z, state.inner_z, zero_residual(z)),
            (batches.upper_y, batches.lower_y, batches.lower_z),
            num_steps=inner_steps,
            is_shared=is_shared,
        )
        upper_value, f_x = grad.upper_x(x, u, batches.upper_x)
        lower_value, g_x = grad.lower_x(x, u, w, batches.lower_x)
        d_x = axpy(lam, g_x, f_x)
        x_new, outer_state = move_x(d_x, state.outer, x, state)
        new = PenaltyState(
            count=state.count,
            x=x_new,
            y=proximal.average(y, u),
            z=proximal.average(z, w),
            penalty=lam,
            outer=outer_state,
            inner_y=inner_y,
            inner_z=inner_z,
        )
        info = BilevelInfo(upper_value, lower_value, norm(d_x), residual, lam, None)
        return conclude(state, new, schedule, (u, w), info)

    return Solver(init, jax.jit(step))
