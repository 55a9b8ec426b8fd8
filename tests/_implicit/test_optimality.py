"""Optimality maps: the derivative each implies, against closed forms.

The derivative is formed densely from the map alone, -(∂_yF)⁻¹ ∂_θF, and then by the
decorators, at solutions that are known in closed form.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from precision import assert_allclose

import optkit as ok

opt = ok.optimality
KKT = opt.KKT


def dense_derivative(residual, y, args):
    """-(∂_yF)⁻¹ ∂_θF, a row for each entry of y."""
    flat_y, unravel_y = ravel_pytree(y)
    flat_args, unravel_args = ravel_pytree(args)

    def flat(a, b):
        return ravel_pytree(residual(unravel_y(a), unravel_args(b)))[0]

    assert_allclose(flat(flat_y, flat_args), 0, atol=1e-12)
    dy, dargs = jax.jit(jax.jacrev(flat, argnums=(0, 1)))(flat_y, flat_args)
    return -np.linalg.solve(dy, dargs)


def closed_derivative(solution, args):
    """The Jacobian of the closed form, by forward mode."""
    flat, unravel = ravel_pytree(args)
    return jax.jit(jax.jacfwd(lambda a: ravel_pytree(solution(unravel(a)))[0]))(flat)


class Problem(NamedTuple):
    """A closed form, hyperparameters, and maps that it satisfies."""

    solution: object
    args: object
    residuals: tuple = ()
    mappings: tuple = ()


X = jnp.asarray(np.random.default_rng(1).normal(size=(12, 4)))
TARGET = X @ jnp.array([1.0, -2.0, 0.02, 0.5]) + 0.1
Q = jnp.array([[2.0, 0.3, 0.1], [0.3, 1.0, 0.2], [0.1, 0.2, 1.5]])


def ridge(w, args):
    residual = X @ w - args["target"]
    return 0.5 * jnp.mean(residual**2) + 0.5 * jnp.sum(args["l2"] * w**2)


def ridge_solution(args):
    A = X.T @ X / 12 + jnp.diag(args["l2"])
    return jnp.linalg.solve(A, X.T @ args["target"] / 12)


def least_squares(w, args):
    return 0.5 * jnp.mean((X @ w - args["target"]) ** 2)


def lasso_prox(v, args, t):
    return ok.prox.elastic_net(v, args["l1"], args["l2"], t)


def lasso_solution(args):
    """The solution, given that the third coefficient vanishes."""
    S, signs = np.array([0, 1, 3]), jnp.array([1.0, -1.0, 1.0])
    A = X[:, S].T @ X[:, S] / 12 + args["l2"] * jnp.eye(3)
    w = jnp.linalg.solve(A, X[:, S].T @ args["target"] / 12 - args["l1"] * signs)
    return jnp.zeros(4).at[S].set(w)


def blocks(solution):
    """The same problem with w in two blocks."""
    return lambda args: {"a": solution(args)[:1], "b": solution(args)[1:]}


def blocked(y, args):
    return least_squares(jnp.concatenate([y["a"], y["b"]]), args)


def quadratic(y, c):
    return 0.5 * y @ Q @ y - c @ y


def simplex(v, _):
    return optax.projections.projection_simplex(v)


def simplex_solution(support):
    """The minimum of `quadratic` on the simplex, given its support."""

    def solution(c):
        n, S = len(support), np.array(support)
        K = jnp.zeros((n + 1, n + 1)).at[:n, :n].set(Q[np.ix_(S, S)])
        K = K.at[:n, n].set(1).at[n, :n].set(1)
        y = jnp.linalg.solve(K, jnp.append(c[S], 1.0))[:n]
        return jnp.zeros(3).at[S].set(y)

    return solution


INSIDE, EDGE = jnp.array([0.9, 0.2, 0.5]), jnp.array([2.0, -1.0, 1.5])
LASSO = {"target": TARGET, "l1": jnp.asarray(0.2), "l2": jnp.asarray(0.1)}
PROBLEMS = {
    "ridge": Problem(
        ridge_solution,
        {"target": TARGET, "l2": jnp.array([0.1, 0.5, 1.0, 2.0])},
        residuals=(opt.stationary(ridge),),
        mappings=(
            opt.gradient_descent(ridge, 0.3),
            opt.newton(opt.stationary(ridge), 0.5),
        ),
    ),
    "lasso": Problem(
        lasso_solution,
        LASSO,
        mappings=tuple(
            opt.proximal_gradient(least_squares, lasso_prox, eta) for eta in (0.1, 5.0)
        ),
    ),
    "lasso_in_blocks": Problem(
        blocks(lasso_solution),
        LASSO,
        mappings=(
            opt.block_proximal_gradient(
                blocked, {"a": lasso_prox, "b": lasso_prox}, {"a": 0.2, "b": 0.7}
            ),
        ),
    ),
    "inside_the_simplex": Problem(
        simplex_solution([0, 1, 2]),
        INSIDE,
        mappings=(
            opt.exponentiated_gradient(quadratic, 0.3),
            opt.mirror_descent(quadratic, jnp.log, lambda z, _: jax.nn.softmax(z), 2.0),
        ),
    ),
    "edge_of_the_simplex": Problem(
        simplex_solution([0, 2]),
        EDGE,
        mappings=(
            opt.projected_gradient(quadratic, simplex, 5.0),
            opt.exponentiated_gradient(quadratic, 1.0),
        ),
    ),
}
CASES = [
    pytest.param(problem, opt_map, is_mapping, id=f"{name}-{i}")
    for name, problem in PROBLEMS.items()
    for i, (opt_map, is_mapping) in enumerate(
        [(r, False) for r in problem.residuals] + [(m, True) for m in problem.mappings]
    )
]


@pytest.mark.usefixtures("standard_promotion")  # optax's simplex mixes dtypes
@pytest.mark.parametrize(("problem", "opt_map", "is_mapping"), CASES)
def test_the_derivative_of_a_solution_is_that_of_its_closed_form(
    problem, opt_map, is_mapping
):
    """Oracle: the closed form; densely, and through the decorators."""
    y = problem.solution(problem.args)
    expected = closed_derivative(problem.solution, problem.args)
    residual = opt.fixed_point_residual(opt_map) if is_mapping else opt_map
    got = dense_derivative(residual, y, problem.args)
    assert_allclose(got, expected, atol=1e-8 * np.max(np.abs(expected)))

    decorate = ok.implicit_fixed_point if is_mapping else ok.implicit_root
    solve = decorate(opt_map, solver=lx.LU())(lambda y0, args: lax.stop_gradient(y))
    got = closed_derivative(lambda args: solve(y, args), problem.args)
    assert_allclose(got, expected, atol=1e-8 * np.max(np.abs(expected)))


def qp_objective(z, args):
    return 0.5 * z @ jnp.array([[2.0, 0.3], [0.3, 1.0]]) @ z + args["c"] @ z


def qp_equality(z, args):
    return {"sum": jnp.sum(z) - args["d"]}


def qp_inequality(z, args):
    return (z[1] - args["h"],)


QP_ARGS = {
    "c": jnp.array([-1.0, -2.0]),
    "d": jnp.asarray(1.0),
    "h": jnp.asarray(0.6),
}


def test_the_kkt_equations_of_a_quadratic_program():
    """Oracle: by hand, z = (d - h, h) at (.4, .6), whatever c."""
    residual = opt.kkt(qp_objective, qp_equality, qp_inequality)
    y = KKT(jnp.array([0.4, 0.6]), {"sum": jnp.asarray(0.02)}, (jnp.asarray(1.26),))
    jacobian = dense_derivative(residual, y, QP_ARGS)
    exact = np.array([[0.0, 0, 1, -1], [0, 0, 0, 1]])
    assert_allclose(jacobian[:2], exact, atol=1e-12)

    decorate = ok.implicit_root(residual, solver=lx.LU())
    solve = decorate(lambda y0, args: lax.stop_gradient(y))
    got = jax.jit(jax.jacrev(lambda args: solve(y, args).primal))(QP_ARGS)
    got = np.column_stack([got["c"], got["d"], got["h"]])
    assert_allclose(got, exact, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "equality", "inactive"])
def test_kkt_equations_with_some_constraints_left_out(kind):
    """Oracle: the closed form of what is left; an inactive inequality has λ = 0."""
    P = jnp.array([[2.0, 0.3], [0.3, 1.0]])
    constraints = {
        "none": (None, None),
        "equality": (qp_equality, None),
        "inactive": (None, lambda z, args: z[1] - 100 * args["h"]),
    }[kind]

    def solution(args):
        if kind != "equality":
            z = -jnp.linalg.solve(P, args["c"])
            dual = jnp.zeros(()) + 0 * args["d"]
            return KKT(z, None, dual if kind == "inactive" else None)
        ones = jnp.ones((2, 1))
        K = jnp.block([[P, ones], [ones.T, jnp.zeros((1, 1))]])
        w = jnp.linalg.solve(K, jnp.append(-args["c"], args["d"]))
        return KKT(w[:2], {"sum": w[2]}, None)

    residual = opt.kkt(qp_objective, *constraints)
    got = dense_derivative(residual, solution(QP_ARGS), QP_ARGS)
    assert_allclose(got, closed_derivative(solution, QP_ARGS), atol=1e-12)


def program(c, a, radius):
    """min cᵀx with aᵀx = 0 and |x| <= radius."""
    A = jnp.concatenate([a[None], jnp.zeros((1, 3)), -jnp.eye(3)])
    b = jnp.concatenate([jnp.zeros(1), radius[None], jnp.zeros(3)])
    return opt.ConicProgram(c, A, b)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [pytest.param(float, 1e-8, marks=pytest.mark.x64), (jnp.float32, 5e-6)],
)
@pytest.mark.parametrize("derivative", [jax.jacfwd, jax.jacrev])
def test_kkt_equations_at_probabilities_of_very_different_sizes(
    dtype, rtol, derivative
):
    """Oracle: the Jacobian of softmax(a / t), each entry, with x down to 5e-12."""
    t, a = 0.05, jnp.array([0.3, -0.2, 1.1], dtype)

    def negative(x, a):
        return t * jnp.sum(x * jnp.log(x)) - jnp.dot(a, x)

    residual = opt.kkt(negative, lambda x, a: jnp.sum(x) - 1, lambda x, a: -x)

    @ok.implicit_root(residual)
    def solve(y0, a):
        x = jax.nn.softmax(a / t)
        return KKT(x, jnp.mean(a - t * (jnp.log(x) + 1)), jnp.zeros_like(x))

    x = np.exp(np.float64(a) / t - np.max(np.float64(a)) / t)
    x /= x.sum()
    got = jax.jit(derivative(lambda a: solve(None, a).primal))(a)
    want = (np.diag(x) - np.outer(x, x)) / t
    np.testing.assert_allclose(got, want, rtol=rtol)


def test_the_equations_of_a_second_order_cone_program():
    """Oracle: closed form, x = -radius Pc / |Pc| with P the projector on a⊥."""
    args = (jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 1.0, -1.0]), jnp.asarray(1.7))

    def solution(args):
        c, a, radius = args
        along = a @ c / (a @ a)
        part = c - along * a
        x = -radius * part / jnp.linalg.norm(part)
        dual = jnp.concatenate([jnp.stack([-along, jnp.linalg.norm(part)]), part])
        slack = jnp.concatenate([jnp.stack([jnp.zeros(()), radius]), x])
        return opt.ConicSolution(x, dual, slack)

    residual = opt.conic(opt.Cone(zero=1, second_order=(4,)), lambda a: program(*a))
    got = dense_derivative(residual, solution(args), args)
    assert_allclose(got, closed_derivative(solution, args), atol=1e-8)


def test_the_equations_of_a_linear_program():
    """Oracle: the linear equations of the vertex; in c, A and b."""
    c, row, b = jnp.array([1.0, 3.0, 2.0]), jnp.array([2.0, 1.0, 1.0]), jnp.array([3.0])
    A = jnp.concatenate([row[None], -jnp.eye(3)])  # row x = b, x >= 0
    data = opt.ConicProgram(c, A, jnp.concatenate([b, jnp.zeros(3)]))

    def solution(data):
        """x_2 = x_3 = 0 and their slack; the multipliers from the rows that bind."""
        rows = np.array([0, 2, 3])
        x = jnp.linalg.solve(data.A[rows], data.b[rows])
        dual = jnp.zeros(4).at[rows].set(jnp.linalg.solve(data.A[rows].T, -data.c))
        slack = jnp.zeros(4).at[1].set(data.b[1] - data.A[1] @ x)
        return opt.ConicSolution(x, dual, slack)

    residual = opt.conic(opt.Cone(zero=1, non_negative=3))
    assert_allclose(solution(data).primal, [1.5, 0, 0])
    assert jnp.all(solution(data).dual[1:] >= 0)
    got = dense_derivative(residual, solution(data), data)
    assert_allclose(got, closed_derivative(solution, data), atol=1e-10)


def test_values_that_are_closed_over_carry_derivatives():
    """Oracle: the same values in args; other args are an int, a string and None."""
    w, args = jnp.ones(4), {"target": TARGET, "l2": jnp.ones(4)}

    def through_args(l2):
        return opt.gradient_descent(ridge, 0.1)(w, {**args, "l2": l2})

    def closed_over(l2):
        def objective(w, other):
            assert other == (1, "static", None)
            return ridge(w, {**args, "l2": l2})

        return opt.gradient_descent(objective, jnp.asarray(0.1))(w, (1, "static", None))

    expected = jax.jit(jax.jacfwd(through_args))(args["l2"])
    assert_allclose(jax.jit(jax.jacfwd(closed_over))(args["l2"]), expected, rtol=1e-14)


def test_trees_keep_their_structure_and_dtypes():
    """Oracle: float64 arithmetic by hand; None stays."""
    y = {"a": jnp.array([1.0, 2.0], jnp.bfloat16), "b": (None, jnp.float32(3.0))}

    def objective(y, c):
        return 0.5 * jnp.sum(y["a"].astype(jnp.float32) ** 2) + c * y["b"][1] ** 2

    c = jnp.float32(0.5)
    prox = lambda v, args, t: ok.prox.lasso(v, 1.0, t)  # noqa: E731
    for mapping in (
        opt.proximal_gradient(objective, prox, 0.5),
        opt.block_proximal_gradient(objective, {"a": prox, "b": prox}, 0.5),
    ):
        new = mapping(y, c)
        assert jax.tree.structure(new) == jax.tree.structure(y)
        assert new["a"].dtype == jnp.bfloat16
        assert_allclose(new["a"].astype(float), [0.0, 0.5])
        assert_allclose(new["b"][1], 1.0)
    residual = opt.fixed_point_residual(opt.gradient_descent(objective, 0.5))(y, c)
    assert_allclose(residual["a"].astype(float), [-0.5, -1.0])


def test_exponentiated_gradient_is_finite_at_a_vertex_and_far_from_one(key):
    """Oracle: rows sum to one; softmax where all entries are positive."""
    mapping = opt.exponentiated_gradient(lambda y, c: jnp.sum(y * c), 1.0)
    c = 5000 * jr.normal(key, (2, 3))
    for y in (jnp.eye(3)[:2], jnp.full((2, 3), 1 / 3)):
        new = mapping(y, c)
        assert_allclose(new.sum(1), 1)
        assert jnp.all(jnp.isfinite(jax.jacfwd(mapping)(y, c)))
    assert_allclose(new, jax.nn.softmax(-c), rtol=1e-12)


def bad(prox_or_projection, build=opt.proximal_gradient):
    return build(lambda y, _: jnp.sum(y**2), prox_or_projection)(jnp.ones(3), None)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: opt.gradient_descent(ridge, 0.0), ValueError, "step_size > 0"),
        (
            lambda: opt.stationary(lambda y, _: y)(jnp.ones(2), None),
            ValueError,
            "one real scalar",
        ),
        (
            lambda: opt.stationary(lambda y, _: y.sum())(jnp.arange(2), None),
            TypeError,
            "real floating leaves",
        ),
        (
            lambda: bad(lambda v, _, t: v[:1]),
            ValueError,
            r"needs prox\(v, args, step_size\) in the shape of y, got \(1,\)",
        ),
        (
            lambda: bad(lambda v, _: {"v": v}, opt.projected_gradient),
            ValueError,
            r"needs projection\(v, args\) in the structure of y",
        ),
        (
            lambda: opt.block_proximal_gradient(ridge, {"a": ok.prox.none}, {"b": 1.0}),
            ValueError,
            "step_sizes as one value, or as a prefix of proxes",
        ),
        (
            lambda: bad([ok.prox.none], opt.block_proximal_gradient),
            ValueError,
            "prefix of y",
        ),
        (
            lambda: opt.kkt(qp_objective)(jnp.ones(2), QP_ARGS),
            TypeError,
            r"ok\.optimality\.KKT",
        ),
        (
            lambda: opt.kkt(qp_objective, qp_equality)(KKT(jnp.ones(2)), QP_ARGS),
            ValueError,
            "dual_eq in the structure of its constraint",
        ),
        (
            lambda: opt.conic(opt.Cone(zero=2))(
                opt.ConicSolution(*map(jnp.ones, (3, 5, 5))),
                program(jnp.ones(3), jnp.ones(3), jnp.ones(())),
            ),
            ValueError,
            r"A of shape \(2, 3\), got \(5, 3\)\. The rows of A must match the cone",
        ),
        (
            lambda: opt.newton(lambda y, _: y[:1])(jnp.ones(2), None),
            ValueError,
            r"needs residual\(y, args\) in the shape of y, got \(1,\)",
        ),
    ],
)
def test_bad_pieces_are_named(call, error, match):
    """Oracle: the message."""
    with pytest.raises(error, match=match):
        call()


def test_a_fixed_point_residual_is_like_y():
    """Oracle: the message. Unchecked, it would broadcast."""
    F = ok.optimality.fixed_point_residual(lambda y, a: jnp.ones(3))
    with pytest.raises(
        ValueError, match=r"residual` needs mapping.* in the shape of y"
    ):
        F(jnp.ones(1), None)
