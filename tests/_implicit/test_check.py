"""The verdicts of `ok.check_implicit`, one for each cause."""

import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import pytest
from precision import X64, assert_allclose

import optkit as ok

H = jnp.diag(jnp.array([1.0, 4.0, 100.0]))
A = jnp.array([1.0, -2.0, 3.0])


def objective(y, a):
    return 0.5 * y @ H @ y - jnp.vdot(a, y)


def exact(y0, a):
    return a / jnp.diagonal(H)


def steps(y0, a):
    for _ in range(3):
        y0 = y0 - 0.01 * (H @ y0 - a)
    return y0


def check(key, solve=exact, function=objective, solver=None, a=A, damping=0.0):
    decorate = ok.implicit_minimum(function, solver=solver, damping=damping)
    fit = decorate(solve)
    return ok.check_implicit(fit, a, y0=jnp.zeros(3), key=key)


def test_a_right_derivative_agrees(key):
    """Oracle: κ = 100, and a solution in closed form."""
    report = check(key, solver=ok.CG(1e-10 if X64 else 1e-6))
    assert "agrees" in report.verdict
    assert report.error < (1e-8 if X64 else 1e-4)
    assert report.distance < (1e-10 if X64 else 1e-6)
    assert report.backward_residual < (1e-9 if X64 else 1e-6)
    assert_allclose(report.condition_number, 100, rtol=1e-9)
    assert len(str(report).splitlines()) == 7


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({"solve": steps}, "has not converged"),
        ({"solver": ok.OneStep()}, "biased by its cheap linear solve"),
        ({"solve": lambda y0, a: exact(y0, 1.1 * a)}, "has not converged"),
        ({"function": lambda y, a: objective(y, a) - y[0] ** 2}, "not positive"),
    ],
    ids=["three steps", "one step", "wrong problem", "indefinite"],
)
def test_what_is_wrong_is_named(key, options, verdict):
    """Oracle: the mistake that was made."""
    report = check(key, **options)
    assert verdict in report.verdict
    assert "agrees" not in report.verdict


@pytest.mark.x64
@pytest.mark.parametrize(
    ("decorate", "loose"),
    [
        (
            lambda H, b, **options: ok.implicit_minimum(
                lambda y, a: 0.5 * y @ H @ y - y @ (a * b), **options
            ),
            ok.CG(1e-5),
        ),
        (
            lambda H, b, **options: ok.implicit_root(
                lambda y, a: H @ y - a * b, **options
            ),
            ok.GMRES(1e-5),
        ),
    ],
    ids=["CG", "GMRES"],
)
def test_a_loose_tolerance_is_named_and_a_tight_one_agrees(key, decorate, loose):
    """Oracle: a correct condition with κ = 1e3, and an error of at most 1e-5 κ."""
    Q, _ = jnp.linalg.qr(jr.normal(key, (50, 50)))
    H = (Q * jnp.logspace(0, -3, 50)) @ Q.T
    b = jr.normal(jr.key(3), (50,))

    def verdict(**options):
        fit = decorate(H, b, **options)(lambda y0, a: jnp.linalg.solve(H, a * b))
        return ok.check_implicit(fit, jnp.ones(50), y0=b, key=jr.key(1)).verdict

    assert "tolerance of the linear solve" in verdict(solver=loose)
    assert "agrees" in verdict()
    assert "agrees" in verdict(solver=lx.LU())


def test_damping_is_named(key):
    """Oracle: λ equals the smallest curvature, where it halves the derivative."""
    assert "biased by damping=1," in check(key, solver=ok.CG(1e-6), damping=1.0).verdict


def test_an_optimality_of_another_problem_and_one_without_a_derivative(key):
    """Oracle: a solver that moves twice as far as y = a; y² = a² at 0."""
    other = ok.implicit_root(lambda y, a: y - a, solver=lx.LU())(
        lambda y0, a: A + 2 * (a - A)
    )
    report = ok.check_implicit(other, A, y0=A, key=key)
    assert "not what the solver solves" in report.verdict
    assert_allclose(report.error, 0.5, rtol=1e-3)
    flat = ok.implicit_root(lambda y, a: y**2 - a**2, solver=lx.LU())(
        lambda y0, a: jnp.abs(a)
    )
    report = ok.check_implicit(flat, jnp.zeros(2), y0=A, key=key)
    assert "singular" in report.verdict


@pytest.mark.parametrize("size", [1e20, 1.0, 1e-25])
def test_a_wrong_solver_is_named_at_any_scale(key, size):
    """Oracle: y = 3a for y = a, two thirds off. In float32 squares leave the range."""
    fit = ok.implicit_root(lambda y, a: y - a)(lambda y0, a: 3 * a)
    a = jnp.full(3, size, jnp.float32)
    report = ok.check_implicit(fit, a, y0=a, key=key)
    assert "has not converged" in report.verdict
    assert_allclose((report.error, report.distance), 2 / 3, rtol=1e-3)
    assert_allclose(report.residual, 2 * size * 3**0.5, rtol=1e-6)


def test_bad_arguments_say_what_to_do(key):
    """Oracle: the messages."""
    fit = ok.implicit_minimum(objective)(exact)
    with pytest.raises(ValueError, match="floating array in args"):
        ok.check_implicit(fit, jnp.arange(3), y0=A, key=key)
    with pytest.raises(ValueError, match="step > 0"):
        ok.check_implicit(fit, A, y0=A, key=key, step=-1.0)
