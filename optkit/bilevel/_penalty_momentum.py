"""The proximal penalty method in one loop, with recursive momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from .._solver.solver import Solver
from .._types import Params
from .._vector import (
    axpy,
    cast_like,
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
)
from ._penalized import (
    conclude,
    move,
    oracles,
)
from ._proximal import as_proximal
from ._schedules import as_sigma
from ._storm import (
    Estimates,
    Point,
    as_decay,
    estimate_lower,
    estimate_upper,
    zero_estimates,
)


class PenaltyMomentumState(NamedTuple):
    """What the next step of the penalty method with momentum needs."""

    count: Int[Array, ""]
    x: Params
    y: Params  # the centre for σf + g
    z: Params  # the centre for g
    u: Params  # the proximal iterates beside the centres
    w: Params
    previous: Point  # x, u and w a step ago
    estimates: Estimates
    penalty: Float[Array, ""]  # 1/σ_k
    outer: PyTree  # the states of the transforms of x, u and w
    inner_y: PyTree
    inner_z: PyTree


def penalty_momentum(
    upper: Objective,
    lower: Objective,
    *,
    outer: optax.GradientTransformation,
    inner: optax.GradientTransformation,
    sigma: Any,
    decay: Any,
    prox_step: Any = None,
    averaging: Any = 1.0,
    project_x: Projection | None = None,
    project_y: Projection | None = None,
) -> Solver:
    """Takes one proximal step for each step of x, along estimates with momentum.

    In the letters of `ok.bilevel.penalty`, with e[...] the estimates of `ok.bilevel.f3sa`,

        w ← e[∇_y g(x, w)] + (w - z)/ρ                      then onto Y
        u ← σ e[∇_y f(x, u)] + e[∇_y g(x, u)] + (u - y)/ρ   then onto Y
        z ← (1-β) z + β w        y ← (1-β) y + β u
        x ← e[∇_x f(x, u)] + e[∇_x (g(x, u) - g(x, w))] / σ   then onto X

    where e_k = ∇(new; ξ_k) + decay (e_{k-1} - ∇(old; ξ_k)), and the old point of ∇_x
    has the u and w from before this step's move, as in `ok.bilevel.f3sa`.

    Steps must be of three sizes: u and w fastest, the centres next, x slowest by far:
    the lag of u and w behind their minimisers is multiplied by 1/σ. `ok.bilevel.penalty` says
    more about that, about ρ and about `info`.

    What is chosen, where the source leaves room: (1) the old points are those of F3SA,
    with which an estimate of an exact gradient is exact; (2) x moves after u and w, as
    there; (3) the proximal term has no noise and is not estimated; (4) the two
    estimates of ∇_x g are kept as their difference.

    Args:
        upper: f(x, y, batch), a scalar.
        lower: g(x, y, batch), a scalar.
        outer: the transform of x.
        inner: the transform of u and w, each with a state of its own.
        sigma: σ, a number > 0 or a function of the step: `ok.bilevel.sigma_schedule(...)`.
        decay: of the estimates, a number in [0, 1) or a function of the step. The first
            two steps take 0 in its place.
        prox_step: ρ, a number > 0, or None for no proximal term.
        averaging: β, a number in (0, 1].
        project_x: onto X, after each step of x.
        project_y: onto Y, after each step of u and w.

    Returns:
        An `ok.Solver` whose state is an `ok.bilevel.PenaltyMomentumState`. Its `step` is
        jitted; it takes one batch for all gradients, or an `ok.bilevel.Batches`.

    Raises:
        ValueError: for a sigma or a prox_step that is not positive, an averaging
            outside (0, 1] or a decay outside [0, 1); in `step`, for objectives that are
            not scalar.
        TypeError: for transforms that are none; in `init`, for leaves that are not
            real floating.

    Example:
        >>> import jax.numpy as jnp, optax, optkit as ok
        >>> def upper(x, y, batch):
        ...     return (y - 1) ** 2 / 2
        >>> def lower(x, y, batch):
        ...     return (y - x) ** 2 / 2
        >>> solver = ok.bilevel.penalty_momentum(
        ...     upper, lower, outer=optax.sgd(0.1), inner=optax.sgd(0.5), sigma=0.1,
        ...     decay=0.9,
        ... )
        >>> state = solver.init(jnp.array(0.0), jnp.array(0.0))
        >>> for _ in range(200):
        ...     state, info = solver.step(state, None)
        >>> print(f"{state.x:.3f} {state.y:.3f}")
        1.000 1.000

    Reference:
        Kwon et al. 2023, arXiv:2309.01753, the single-loop algorithm with momentum.
    """
    call = "ok.bilevel.penalty_momentum"
    schedule = as_sigma(call, sigma)
    beta = as_decay(call, decay)
    proximal = as_proximal(call, prox_step, averaging)
    grad = oracles(call, upper, lower)
    move_x = move(call, "outer", outer, project_x)
    move_y = move(call, "inner", inner, project_y)

    def init(x: Params, y: Params) -> PenaltyMomentumState:
        check_variables(call, x, y)
        x, y, z = strong(x), strong(y), strong(y)
        return PenaltyMomentumState(
            count=jnp.zeros([], jnp.int32),
            x=x,
            y=y,
            z=z,
            u=strong(y),
            w=strong(z),
            previous=strong(Point(x, y, z)),
            estimates=zero_estimates(x, y),
            penalty=schedule.initial(),
            outer=move_x.tx.init(x),
            inner_y=move_y.tx.init(y),
            inner_z=move_y.tx.init(z),
        )

    def step(
        state: PenaltyMomentumState, batch: Batch
    ) -> tuple[PenaltyMomentumState, BilevelInfo]:
        batches, _ = batches_of(batch)
        x, u, w, lam = state.x, state.u, state.w, state.penalty
        b, now = beta(state.count), Point(x, u, w)
        e = estimate_lower(grad, batches, b, state.estimates, now, state.previous)
        d_w = proximal.pull(cast_like(e.lower_z, w), w, state.z)
        h_u = cast_like(axpy(1 / lam, e.upper_y, e.lower_y), u)
        d_u = proximal.pull(h_u, u, state.y)
        w_new, inner_z = move_y(d_w, state.inner_z, w, state)
        u_new, inner_y = move_y(d_u, state.inner_y, u, state)
        e, upper_value, lower_value = estimate_upper(
            grad, batches, b, e, Point(x, u_new, w_new), Point(state.previous.x, u, w)
        )
        d_x = cast_like(axpy(lam, e.lower_x, e.upper_x), x)
        x_new, outer_state = move_x(d_x, state.outer, x, state)
        new = PenaltyMomentumState(
            count=state.count,
            x=x_new,
            y=proximal.average(state.y, u_new),
            z=proximal.average(state.z, w_new),
            u=u_new,
            w=w_new,
            previous=now,
            estimates=e,
            penalty=lam,
            outer=outer_state,
            inner_y=inner_y,
            inner_z=inner_z,
        )
        sizes = norm(d_x), move_y.residual(d_w, w)
        info = BilevelInfo(upper_value, lower_value, *sizes, lam, None)
        return conclude(state, new, schedule, (u_new, w_new), info)

    return Solver(init, jax.jit(step))
