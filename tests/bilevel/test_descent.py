import jax.numpy as jnp
import lineax as lx
import numpy as np
import optax
import pytest
from precision import X64, assert_allclose
from problems import (
    Q2_A,
    Q2_B,
    Q2_MINIMISER,
    Q2_RHO,
    Q2_T,
    Q2_X,
    q2_lower,
    q2_solution,
    q2_upper,
)

import optkit as ok

SGD = optax.sgd(0.4)
SMALL = 1e-10 if X64 else 1e-6


def solver_of(method, **kwargs):
    kwargs = {"outer": optax.sgd(0.1)} | kwargs
    if not method.moves_y:
        kwargs = {"inner": SGD} | kwargs
    return ok.bilevel.hypergradient_descent(q2_upper, q2_lower, method=method, **kwargs)


@pytest.mark.parametrize(
    "method",
    [
        ok.bilevel.Implicit(ok.CG(SMALL)),
        ok.bilevel.Implicit(lx.Cholesky()),
        ok.bilevel.Implicit(ok.Neumann(1, 0.4), warm_start=True),
        ok.bilevel.Unrolled(60, SGD),
        ok.bilevel.ForwardMode(60, SGD),
    ],
    ids=["CG", "Cholesky", "warm Neumann", "unrolled", "forward"],
)
def test_reaches_the_minimiser(method):
    """Oracle: closed form."""
    solver = solver_of(method)
    state = solver.init(jnp.zeros(2), jnp.zeros(2))
    state, history = ok.run(solver, state, lambda k: None, 1500, every=1500)
    assert_allclose(state.x, Q2_MINIMISER, rtol=2e-7)
    assert_allclose(state.y, q2_solution(state.x), rtol=1e-8)
    assert history.hypergradient_norm[-1] < 100 * SMALL
    assert history.residual_norm[-1] < 100 * SMALL
    assert np.all(history.result == ok.RESULTS.successful)


def test_two_steps_are_the_loop_of_the_paper():
    """Oracle: NumPy transcription, T = 3 inner steps and the exact inverse."""
    solver = solver_of(ok.bilevel.Implicit(lx.Cholesky()), inner_steps=3)
    state = solver.init(Q2_X, jnp.zeros(2))
    x, y = Q2_X, np.zeros(2)
    for _ in range(2):
        state, _ = solver.step(state, None)
        for _ in range(3):
            y = y - 0.4 * Q2_A @ (y - q2_solution(x))
        x = x - 0.1 * (Q2_RHO * x + Q2_B.T @ np.linalg.solve(Q2_A, y - Q2_T))
    assert_allclose(state.x, x, rtol=1e-12)
    assert_allclose(state.y, y, rtol=1e-12)


def test_each_oracle_has_its_batch():
    """Oracle: closed form; each batch scales its objective by a different number."""

    def lower(x, y, batch):
        return 0.5 * batch * jnp.sum((y - x) ** 2)

    def upper(x, y, batch):
        return 0.5 * batch * jnp.sum(y**2)

    solver = ok.bilevel.hypergradient_descent(
        upper,
        lower,
        outer=optax.sgd(1.0),
        inner=optax.sgd(1.0),
        inner_steps=2,
        method=ok.bilevel.Implicit(ok.CG(), damping=1.0),
    )
    # y: 0 -> 0.5 -> 0.75 of x = 1; then v = F_y / (H + 1) and J v = -H v.
    batch = ok.bilevel.Batches(
        upper_x=jnp.array(3.0), lower_x=jnp.array(4.0), lower_y=jnp.array([0.5, 0.5])
    )
    state, info = solver.step(solver.init(jnp.ones(2), jnp.zeros(2)), batch)
    assert_allclose(state.y, [0.75, 0.75], rtol=1e-12)
    assert_allclose(state.x, 1 - (3 * 0.75) * 4 / (4 + 1) * np.ones(2), rtol=1e-9)
    assert_allclose(info.linear_residual, 1 - 4 / 5, rtol=1e-9)


def test_constraint_on_both_levels_is_active_at_the_solution():
    """Oracle: a grid of the value function with a clipped solution, by hand.

    y* = min(x, 1) and F = ½ (y - 3)² + ½ (x - 3)², so that x* = 3 where y is stuck at
    1; with x <= 2, x* = 2.
    """

    def lower(x, y, batch):
        return 0.5 * jnp.sum((y - x) ** 2)

    def upper(x, y, batch):
        return 0.5 * jnp.sum((y - 3) ** 2 + (x - 3) ** 2)

    def at_most_one(y):
        return jnp.minimum(y, 1.0)

    solver = ok.bilevel.hypergradient_descent(
        upper,
        lower,
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.5),
        project_x=lambda x: jnp.minimum(x, 2.0),
        project_y=at_most_one,
        method=ok.bilevel.ImplicitProjected(at_most_one, 0.5),
    )
    state = solver.init(jnp.zeros(1), jnp.zeros(1))
    state, history = ok.run(solver, state, lambda k: None, 200, every=200)
    assert_allclose(state.x, [2.0], rtol=0)
    assert_allclose(state.y, [1.0], rtol=0)
    assert_allclose(history.hypergradient_norm[-1], 1.0, rtol=1e-12)


def test_bad_arguments_raise():
    implicit, unrolled = ok.bilevel.Implicit(ok.CG()), ok.bilevel.Unrolled(3, SGD)
    with pytest.raises(ValueError, match="needs `inner=`"):
        solver_of(implicit, inner=None)
    with pytest.raises(ValueError, match="takes the steps of y itself"):
        solver_of(unrolled, inner=SGD)
    with pytest.raises(ValueError, match="takes the steps of y itself"):
        solver_of(unrolled, inner_steps=3)
    with pytest.raises(ValueError, match="inner_steps >= 1"):
        solver_of(implicit, inner_steps=0)
    with pytest.raises(TypeError):
        ok.bilevel.hypergradient_descent(q2_upper, q2_lower, outer=SGD, method="cg")
