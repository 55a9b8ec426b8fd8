import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from precision import X64, assert_allclose
from problems import (
    Q2_A,
    Q2_B,
    Q2_RHO,
    Q2_X,
    linear_data,
    linear_example_loss,
    linear_loss,
    linear_params,
    q2_hypergradient,
    q2_lower,
    q2_solution,
    q2_upper,
)

import optkit as ok

LEAST = 1e-12 if X64 else 1e-6  # rtol of a solve


def at_solution(method, x=Q2_X):
    estimate = jax.jit(ok.bilevel.hypergradient(q2_upper, q2_lower, method=method))
    return estimate(x, q2_solution(x), None)


def decayed(x, y, batch):
    """A weight decay for each leaf, one of them frozen."""
    penalty = jnp.exp(x["w"]) * jnp.sum(y["w"] ** 2) + jnp.sum(
        jnp.exp(x["b"]) * y["b"] ** 2
    )
    return linear_loss(y, *batch) + 0.5 * penalty


def validation(x, y, batch):
    return linear_loss(y, *batch) + 0.01 * jnp.sum(x["b"] ** 2)


def tree_problem(key):
    x = {"w": jnp.array(-1.0), "b": jnp.array([0.5, -0.5]), "none": None}
    k1, k2, k3 = jr.split(key, 3)
    batch = ok.bilevel.Batches(upper_x=linear_data(k1), lower_x=linear_data(k2))
    return x, linear_params(k3), batch


def dense_hypergradient(x, y, batch, inverse):
    """∇_x F - J P ∇_y F with every matrix written out."""
    flat_x, to_x = ravel_pytree(x)
    flat_y, to_y = ravel_pytree(y)

    @jax.jit
    def dense(a, b):
        def g(a, b):
            return decayed(to_x(a), to_y(b), batch.lower_x)

        def F(a, b):
            return validation(to_x(a), to_y(b), batch.upper_x)

        H = jax.hessian(g, 1)(a, b)
        J = jax.jacobian(jax.grad(g, 0), 1)(a, b)
        return jax.grad(F, 0)(a, b) - J @ inverse(H) @ jax.grad(F, 1)(a, b)

    return to_x(dense(flat_x, flat_y))


@pytest.mark.parametrize(
    "solver",
    [
        ok.CG(LEAST),
        ok.Neumann(200, 0.4),
        ok.GMRES(LEAST),
        lx.Cholesky(),
        lx.LU(),
        lx.CG(LEAST, 0.0),
    ],
    ids=lambda solver: type(solver).__module__ + type(solver).__name__,
)
def test_methods_that_solve_are_exact_at_a_minimum(solver):
    """Oracle: closed form."""
    gradient, info = at_solution(ok.bilevel.Implicit(solver))
    assert_allclose(gradient, q2_hypergradient(Q2_X), rtol=1e-10)
    assert_allclose(gradient, (3.5557142857, 1.8008163265), rtol=1e-9)
    assert_allclose(info.direct, Q2_RHO * Q2_X, rtol=1e-15)
    assert_allclose(info.value, 1.6692346938775504, rtol=1e-14)
    assert info.residual_norm < (1e-14 if X64 else 1e-6)
    assert info.linear_residual < 100 * LEAST
    assert info.result == ok.RESULTS.successful


@pytest.mark.parametrize(
    ("solver", "expected"),
    [
        (ok.OneStep(), (3.07, 1.3171428571)),
        (ok.Neumann(1, 0.4), (1.27, 0.5028571429)),
        (ok.Neumann(2, 0.4), (2.006, 0.9097142857)),
        (ok.Neumann(5, 0.4), (3.063024, 1.5167817143)),
        (ok.Neumann(20, 0.4), (3.5541021952, 1.7998869)),
    ],
)
def test_truncated_inverses_are_off_by_the_terms_left_out(solver, expected):
    """Oracle: numbers computed once in NumPy; and the residual by its definition."""
    gradient, info = at_solution(ok.bilevel.Implicit(solver))
    assert_allclose(gradient, expected, rtol=1e-7)
    left = np.linalg.solve(Q2_B.T, q2_hypergradient(Q2_X) - np.asarray(gradient))
    b = q2_solution(Q2_X) - np.array([1.0, -1.0])
    residual = np.linalg.norm(Q2_A @ left) / np.linalg.norm(b)
    assert_allclose(info.linear_residual, residual, rtol=1e-10, float32=1e-2)


def test_damping_is_added_to_the_hessian():
    """Oracle: closed form with (A + λI)⁻¹."""
    gradient, info = at_solution(ok.bilevel.Implicit(lx.Cholesky(), 0.5))
    b = q2_solution(Q2_X) - np.array([1.0, -1.0])
    v = np.linalg.solve(Q2_A + 0.5 * np.eye(2), b)
    assert_allclose(gradient, Q2_RHO * Q2_X + Q2_B.T @ v, rtol=1e-12)
    residual = np.linalg.norm(Q2_A @ v - b) / np.linalg.norm(b)
    assert_allclose(info.linear_residual, residual, rtol=1e-10)


def test_pytrees_and_independent_batches_equal_the_dense_formula(key):
    """Oracle: dense Hessian and cross derivative by `jax.hessian`."""
    x, y, batch = tree_problem(key)
    method = ok.bilevel.Implicit(ok.CG(LEAST))
    estimate = jax.jit(ok.bilevel.hypergradient(validation, decayed, method=method))
    gradient, info = estimate(x, y, batch)
    expected = dense_hypergradient(x, y, batch, jnp.linalg.inv)
    assert jax.tree.structure(gradient) == jax.tree.structure(x)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-9), gradient, expected)
    assert_allclose(info.value, validation(x, y, batch.upper_x), rtol=1e-12)
    assert_allclose(info.lower, decayed(x, y, batch.lower_x), rtol=1e-12)


@pytest.mark.parametrize(
    "solver",
    [ok.Woodbury(), ok.Nystrom(8, key=jr.key(1)), ok.CG(1e-13 if X64 else 1e-6)],
)
def test_another_curvature_stands_for_the_hessian(key, solver):
    """Oracle: the dense inverse of the damped Fisher."""
    x, y, batch = tree_problem(key)

    def fisher(x, y, batch):
        return ok.empirical_fisher(linear_example_loss, y, batch)

    method = ok.bilevel.Implicit(solver, 0.1, curvature=fisher)
    estimate = jax.jit(ok.bilevel.hypergradient(validation, decayed, method=method))
    gradient, info = estimate(x, y, batch)
    matrix = fisher(x, y, batch.lower_x).as_matrix() + 0.1 * jnp.eye(8)
    expected = dense_hypergradient(x, y, batch, lambda H: jnp.linalg.inv(matrix))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-8), gradient, expected)
    assert info.linear_residual > 0.1  # of the Hessian, which it is not


def test_a_warm_start_adds_terms_to_the_last_ones():
    """Oracle: 2K terms of the series at once."""
    objectives = q2_upper, q2_lower
    y, given = jnp.asarray(q2_solution(Q2_X)), (ok.bilevel.Batches(), True)
    warm = ok.bilevel.Implicit(ok.Neumann(3, 0.4), warm_start=True)

    @jax.jit
    def twice(x):
        _, _, v = warm.estimate(objectives, x, y, given, warm.init(y))
        return warm.estimate(objectives, x, y, given, v)[0]

    expected, _ = at_solution(ok.bilevel.Implicit(ok.Neumann(6, 0.4)))
    assert_allclose(twice(Q2_X), expected, rtol=1e-13)


def test_a_solve_that_fails_is_reported_and_does_not_raise():
    """Oracle: the sign of the curvature, -1."""

    def concave(x, y, batch):
        return -0.5 * jnp.sum(y**2) + x @ y

    x = jnp.ones(2)
    for solver, result in [
        (ok.CG(), ok.RESULTS.indefinite),
        (ok.Neumann(30, 0.5), ok.RESULTS.diverging),
    ]:
        method = ok.bilevel.Implicit(solver)
        estimate = jax.jit(ok.bilevel.hypergradient(q2_upper, concave, method=method))
        assert estimate(x, x, None)[1].result == result
    given = ok.bilevel.Implicit(ok.CG(max_steps=1))
    assert at_solution(given)[1].result == ok.RESULTS.max_steps_reached


@pytest.mark.parametrize("solver", [ok.CG(), lx.Cholesky(), lx.LU()], ids=repr)
def test_bfloat16_variables_keep_their_dtype(solver):
    """Oracle: closed form, within rounding."""

    def lower(x, y, batch):
        return 0.5 * jnp.sum((y - 2 * x) ** 2)

    def upper(x, y, batch):
        return 0.5 * jnp.sum(y**2)

    x = jnp.array([1.0, -0.5], jnp.bfloat16)
    estimate = ok.bilevel.hypergradient(
        upper, lower, method=ok.bilevel.Implicit(solver)
    )
    with jax.numpy_dtype_promotion("standard"):  # as Lineax's factorisations need
        gradient, info = jax.jit(estimate)(x, 2 * x, None)
    assert gradient.dtype == jnp.bfloat16
    assert info.residual_norm.dtype == jnp.float32
    assert_allclose(gradient.astype(jnp.float32), [4.0, -2.0], rtol=2**-7)


A3 = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 1.0]])
B3 = np.array([[1.0, -0.5], [0.2, 2.0], [-1.5, 0.4]])
X3 = np.array([0.8, -0.6])


def lower3(x, y, batch):
    return 0.5 * y @ A3 @ y - y @ (B3 @ x)


def upper3(x, y, batch):
    return 0.5 * jnp.sum((y - 2.0) ** 2) + 0.5 * jnp.sum(x**2)


def box(y):
    return jnp.clip(y, 0.0, 0.4)


def ball(y):
    return optax.projections.projection_l2_ball(y, 0.3)


def projected_descent(project, x, num_steps=150):
    def step(_, y):
        return project(y - 0.4 * jax.grad(lower3, 1)(x, y, None))

    return jax.lax.fori_loop(0, num_steps, step, jnp.zeros(3))


@pytest.mark.parametrize("solver", [ok.GMRES(LEAST), lx.LU(), ok.Neumann(150)])
def test_coordinates_at_active_bounds_do_not_count(solver):
    """Oracle: closed form on the coordinates that are free."""
    x = np.array([0.8, 0.3])
    y = jax.jit(projected_descent, static_argnums=0)(box, x)
    assert_allclose(y, [0.265, 0.4, 0.0], rtol=1e-12)
    method = ok.bilevel.ImplicitProjected(box, 0.4, solver)
    estimate = jax.jit(ok.bilevel.hypergradient(upper3, lower3, method=method))
    gradient, info = estimate(x, y, None)
    v = (y[0] - 2.0) / A3[0, 0]
    assert_allclose(gradient, x + B3[0] * v, rtol=1e-9)
    assert info.residual_norm < 100 * LEAST
    assert info.linear_residual < 1000 * LEAST
    assert info.result == ok.RESULTS.successful


def test_a_curved_constraint_counts_with_its_curvature():
    """Oracle: central differences of F at nearby solutions."""
    solve = jax.jit(projected_descent, static_argnums=0)
    y = solve(ball, X3)
    assert_allclose(jnp.linalg.norm(y), 0.3, rtol=1e-12)
    method = ok.bilevel.ImplicitProjected(ball, 0.4, ok.GMRES(LEAST))
    gradient, _ = jax.jit(ok.bilevel.hypergradient(upper3, lower3, method=method))(
        X3, y, None
    )
    h = 1e-5 if X64 else 1e-2
    for i, e in enumerate(np.eye(2)):
        ahead, behind = X3 + h * e, X3 - h * e
        difference = upper3(ahead, solve(ball, ahead), None)
        difference -= upper3(behind, solve(ball, behind), None)
        assert_allclose(gradient[i], difference / (2 * h), rtol=1e-8, float32=1e-3)


@pytest.mark.parametrize("project", [box, ball])
def test_projected_series_is_truncated_backpropagation(project):
    """Oracle: reverse mode through the last K projected steps."""
    y = jax.jit(projected_descent, static_argnums=0)(project, X3)
    series = ok.bilevel.ImplicitProjected(project, 0.4, ok.Neumann(4))
    unrolled = ok.bilevel.Unrolled(4, optax.sgd(0.4), project_y=project)
    one, _ = jax.jit(ok.bilevel.hypergradient(upper3, lower3, method=series))(
        X3, y, None
    )
    other, _ = jax.jit(ok.bilevel.hypergradient(upper3, lower3, method=unrolled))(
        X3, y, None
    )
    assert_allclose(one, other, rtol=1e-12)


def test_bad_arguments_raise():
    with pytest.raises(TypeError):
        ok.bilevel.Implicit("cg")
    with pytest.raises(ValueError, match="damping >= 0"):
        ok.bilevel.Implicit(ok.CG(), -1.0)
    with pytest.raises(TypeError):
        ok.bilevel.ImplicitProjected(None, 0.1)
    with pytest.raises(ValueError, match="step_size > 0"):
        ok.bilevel.ImplicitProjected(box, 0.0)
    with pytest.raises(ValueError, match="not symmetric"):
        ok.bilevel.ImplicitProjected(box, 0.1, ok.CG())
