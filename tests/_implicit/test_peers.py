"""The cases of jaxopt's suite of implicit differentiation, for our decorators.

Oracle throughout: the closed form, and jaxopt's own derivative of the same solver where
it has one. It has none in forward mode, and none for traced values in a closure.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import jaxopt
import lineax as lx
import optax
import pytest
from jaxopt import implicit_diff, linear_solve
from precision import assert_allclose

import optkit as ok

pytestmark = pytest.mark.x64

X = jr.normal(jr.key(0), (20, 4))
T = X @ jnp.array([1.0, -1.0, 0.5, 0.0]) + 0.1 * jr.normal(jr.key(1), (20,))
W0 = jnp.zeros(4)
GMRES, LU = ok.GMRES(1e-13), lx.LU()


def ridge(w, lam, x, t):
    return 0.5 * jnp.mean((x @ w - t) ** 2) + 0.5 * jnp.sum(lam * w**2)


def solution(lam, x=X, t=T):
    return jnp.linalg.solve(x.T @ x / len(t) + lam * jnp.eye(x.shape[1]), x.T @ t / 20)


# jaxopt passes what a solver depends on as arguments, one by one.

F = jax.grad(ridge)
root = functools.partial(implicit_diff.custom_root, F, solve=linear_solve.solve_lu)


def step(w, lam, x, t):
    return w - 0.1 * F(w, lam, x, t)


@root()
def their_ridge(w0, lam, x, t):
    return solution(lam, x, t)


@root(has_aux=True)
def their_ridge_with_aux(w0, lam, x, t):
    return solution(lam, x, t), {"steps": 3}


@implicit_diff.custom_fixed_point(step, solve=linear_solve.solve_lu)
def their_fixed_point(w0, lam, x, t):
    return solution(lam, x, t)


# Ours take one pytree, of any structure.

of_tuple = lambda f: lambda w, args: f(w, *args)  # noqa: E731
of_dict = lambda f: lambda w, args: f(w, args["lam"], *args["data"])  # noqa: E731


def solver(unpack):
    return unpack(lambda w0, lam, x, t: solution(lam, x, t))


our_root = ok.implicit_root(of_tuple(F), solver=LU)(solver(of_tuple))
our_dict = ok.implicit_root(of_dict(F), solver=LU)(solver(of_dict))
our_fixed_point = ok.implicit_fixed_point(of_tuple(step), solver=LU)(solver(of_tuple))


@ok.implicit_root(of_tuple(F), solver=LU, has_aux=True)
def our_root_with_aux(w0, args):
    return solution(*args), {"steps": 3}


@ok.implicit_root(of_tuple(F), solver=LU)
def our_options(w0, args, *, scale=1, verbose=False):
    assert not verbose
    return solution(*args) * scale


class Case(NamedTuple):
    """One case: our solution, theirs and the closed form, as functions of theta."""

    ours: Callable[[Any], Any]
    theirs: Callable[[Any], Any] | None
    closed: Callable[[Any], Any]
    theta: Any = 0.3


LAMS = jnp.array([0.1, 0.2, 0.3, 0.4])
by_lam = functools.partial(
    Case, theirs=lambda lam: their_ridge(W0, lam, X, T), closed=solution
)


def with_integers(lam):
    def optimality(w, args):
        power = 2 if args["square"] else 3
        fit = jnp.mean((X[args["rows"]] @ w - T[args["rows"]]) ** power)
        return jax.grad(lambda w: ridge(w, args["lam"], X, T) + args["zero"] * fit)(w)

    fit = ok.implicit_root(optimality, solver=LU)(lambda w0, a: solution(a["lam"]))
    flags = {"rows": jnp.arange(3), "square": True, "zero": 0, "name": "ridge"}
    return fit(W0, {"lam": lam, **flags})


def closed_over(lam):
    fit = ok.implicit_root(lambda w, _: F(w, lam, X, T), solver=LU)
    return fit(lambda w0, _: solution(lam))(W0, None)


def split(w):
    return {"w": w[:3], "rest": (w[3], None)}


def joined(tree):
    return jnp.append(tree["w"], tree["rest"][0])


def as_tree(lam):
    condition = lambda y, lam: split(F(joined(y), lam, X, T))  # noqa: E731
    fit = ok.implicit_root(condition, solver=GMRES)(lambda y0, a: split(solution(a)))
    return joined(fit(split(W0), lam))


def their_tree(lam):
    condition = lambda y, lam: split(F(joined(y), lam, X, T))  # noqa: E731
    decorate = implicit_diff.custom_root(condition, solve=linear_solve.solve_gmres)
    return joined(decorate(lambda y0, a: split(solution(a)))(split(W0), lam))


def twice(fit):
    """The targets of the second fit are the predictions of the first."""
    return lambda lam: fit(lam, X @ fit(lam, T))


CASES = {
    "one argument": by_lam(lambda lam: our_root(W0, (lam, X, T))),
    "a keyword": by_lam(lambda lam: our_root(W0, args=(lam, X, T))),
    "all keywords": by_lam(
        lambda lam: our_options(args=(lam, X, T), w0=W0, scale=1),
        theirs=lambda lam: their_ridge(W0, t=T, lam=lam, x=X),
    ),
    "options": by_lam(lambda lam: our_options(W0, (lam, X, T), verbose=False)),
    "a dictionary": by_lam(lambda lam: our_dict(W0, {"lam": lam, "data": (X, T)})),
    "one strength per feature": by_lam(
        lambda lam: our_root(W0, (lam, X, T)), closed=solution, theta=LAMS
    ),
    "all arguments": Case(
        lambda theta: our_root(W0, theta),
        lambda theta: their_ridge(W0, *theta),
        lambda theta: solution(*theta),
        (0.3, X, T),
    ),
    "aux": by_lam(
        lambda lam: our_root_with_aux(W0, (lam, X, T))[0],
        theirs=lambda lam: their_ridge_with_aux(W0, lam, X, T)[0],
    ),
    "integers, flags and strings": by_lam(with_integers),
    "a closure": Case(closed_over, None, solution),
    "nested pytrees": by_lam(as_tree, theirs=their_tree),
    "a fixed point": by_lam(
        lambda lam: our_fixed_point(W0, (lam, X, T)),
        theirs=lambda lam: their_fixed_point(W0, lam, X, T),
    ),
    "a fit of a fit": Case(
        twice(lambda lam, t: our_root(W0, (lam, X, t))),
        twice(lambda lam, t: their_ridge(W0, lam, X, t)),
        twice(lambda lam, t: solution(lam, X, t)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_ridge_regression_has_all_its_derivatives(name):
    """Oracle: JAX's derivatives of the closed form, and jaxopt's of the solver."""
    ours, theirs, closed, theta = CASES[name]
    want = jax.jacrev(closed)(theta)
    close = functools.partial(assert_allclose, rtol=1e-8, atol=1e-10)
    assert_tree = functools.partial(jax.tree.map, close)
    for derivative in (jax.jacrev, jax.jacfwd):
        assert_tree(jax.jit(derivative(ours))(theta), want)
    assert_tree(jax.jacrev(ours)(theta), want)
    batch = jax.tree.map(lambda a: jnp.stack([jnp.asarray(a)] * 2), theta)
    assert_tree(jax.tree.map(lambda a: a[1], jax.vmap(jax.jacrev(ours))(batch)), want)
    if theirs is not None:
        rtol = 1e-4 if name == "nested pytrees" else 1e-8
        theirs_is_close = functools.partial(assert_allclose, rtol=rtol, atol=1e-10)
        jax.tree.map(theirs_is_close, jax.jacrev(theirs)(theta), want)


def their_ridge_solver(w0, lam, x, t):
    return solution(lam, x, t)


METHODS = {
    "cg": (ok.CG(1e-13), linear_solve.solve_cg),
    "gmres": (GMRES, linear_solve.solve_gmres),
    "lu": (LU, linear_solve.solve_lu),
    "bicgstab": (lx.BiCGStab(1e-12, 1e-12), linear_solve.solve_bicgstab),
    "normal_cg": (lx.Normal(lx.CG(1e-13, 1e-13)), linear_solve.solve_normal_cg),
}


@pytest.mark.parametrize("name", METHODS)
def test_each_linear_solver_of_jaxopt_has_a_counterpart(name):
    """Oracle: the closed form, and jaxopt's derivative by its own solver."""
    method, theirs = METHODS[name]
    if name == "cg":
        decorate = ok.implicit_minimum(of_tuple(ridge), solver=method)
    else:
        decorate = ok.implicit_root(of_tuple(F), solver=method)
    fit = decorate(solver(of_tuple))
    solve = theirs if name == "lu" else functools.partial(theirs, tol=1e-12)
    their_fit = implicit_diff.custom_root(F, solve=solve)(their_ridge_solver)
    want = jax.jacrev(solution)(0.3)
    assert_allclose(jax.jacrev(lambda a: fit(W0, (a, X, T)))(0.3), want, rtol=1e-8)
    got = jax.jacrev(lambda a: their_fit(W0, a, X, T))(0.3)
    assert_allclose(got, want, rtol=1e-6)


def test_root_vjp_and_jvp_are_those_of_the_decorated_solver():
    """Oracle: jaxopt's `root_vjp` and `root_jvp`, which take a solution."""
    args, u = (0.3, X, T), jnp.arange(1.0, 5.0)
    w, pull = jax.vjp(lambda *args: our_root(W0, args), *args)
    theirs = implicit_diff.root_vjp(F, w, args, u, solve=linear_solve.solve_lu)
    jax.tree.map(functools.partial(assert_allclose, rtol=1e-8), pull(u), theirs)
    tangents = (1.0, jnp.cos(X), jnp.sin(T))
    _, push = jax.jvp(lambda *args: our_root(W0, args), args, tangents)
    solve = linear_solve.solve_lu
    theirs = implicit_diff.root_jvp(F, w, args, tangents, solve=solve)
    assert_allclose(push, theirs, rtol=1e-8)


def lasso(w, l1, step_size):
    return ok.prox.lasso(w, l1, step_size)


def simplex(w, lam):
    return optax.projections.projection_simplex(w)


def their_lasso(l1):
    fun = lambda w, data: 0.5 * jnp.mean((data[0] @ w - data[1]) ** 2)  # noqa: E731
    solve = jaxopt.ProximalGradient(
        fun, jaxopt.prox.prox_lasso, tol=1e-12, maxiter=5000
    )
    return solve.run(W0, hyperparams_prox=l1, data=(X, T)).params


def their_simplex(lam):
    project = jaxopt.projection.projection_simplex
    fun = lambda w, lam: ridge(w, lam, X, T)  # noqa: E731
    solve = jaxopt.ProjectedGradient(fun, project, tol=1e-12, maxiter=5000)
    return solve.run(jnp.full(4, 0.25), lam=lam).params


LEAST_SQUARES = lambda w, _: 0.5 * jnp.mean((X @ w - T) ** 2)  # noqa: E731
MAPPINGS = {
    "lasso": (
        ok.optimality.proximal_gradient(LEAST_SQUARES, lasso, 0.3),
        their_lasso,
    ),
    "simplex": (
        ok.optimality.projected_gradient(
            lambda w, lam: ridge(w, lam, X, T), simplex, 0.3
        ),
        their_simplex,
    ),
}


@pytest.mark.usefixtures("standard_promotion")  # jaxopt's projections promote
@pytest.mark.parametrize("name", MAPPINGS)
def test_a_solver_of_jaxopt_has_a_counterpart(name):
    """Oracle: jaxopt's solution and its derivative; central differences of ours."""
    mapping, theirs = MAPPINGS[name]
    find = functools.partial(ok.solvers.anderson, mapping, rtol=1e-13, max_steps=2000)
    solve = ok.implicit_fixed_point(mapping, solver=GMRES, has_aux=True)(find)

    def ours(a):
        return solve(jnp.full(4, 0.25), a)[0]

    assert_allclose(ours(0.2), theirs(0.2), rtol=1e-7, atol=1e-9)
    got = jax.jit(jax.jacfwd(ours))(0.2)
    assert_allclose(got, jax.jacrev(theirs)(0.2), rtol=1e-5, atol=1e-7)
    difference = (ours(0.2 + 1e-5) - ours(0.2 - 1e-5)) / 2e-5
    assert_allclose(got, difference, rtol=1e-5, atol=1e-7)


def test_a_loop_that_is_unrolled_equals_one_that_jaxopt_unrolls():
    """Oracle: `implicit_diff=False` of jaxopt's gradient descent, 30 steps of it."""

    def theirs(lam):
        solve = jaxopt.GradientDescent(
            ridge,
            maxiter=30,
            tol=0.0,
            stepsize=0.1,
            acceleration=False,
            unroll=True,
            implicit_diff=False,
        )
        return solve.run(W0, lam, X, T).params

    def ours(lam):
        return ok.unroll(of_tuple(step), W0, (lam, X, T), num_steps=30)

    assert_allclose(ours(0.3), theirs(0.3), rtol=1e-10)
    assert_allclose(jax.jacrev(ours)(0.3), jax.jacrev(theirs)(0.3), rtol=1e-10)
