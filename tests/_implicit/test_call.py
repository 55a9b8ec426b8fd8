"""How a decorated solver may be called, and what a type checker knows of it."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok


@ok.implicit_root(lambda y, a: y**3 - a)
def cube_root(y0, theta, *, scale=1):
    return scale * jnp.cbrt(theta) / scale


CALLS = {
    "in order": lambda a: cube_root(a, a),
    "args": lambda a: cube_root(a, args=a),
    "the solver's name": lambda a: cube_root(a, theta=a),
    "all by keyword": lambda a: cube_root(theta=a, y0=a),
    "further keywords": lambda a: cube_root(a, a, scale=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_may_be_keywords(name):
    """Oracle: 1/(3 y²) at y = 2, in both modes."""
    for derivative in (jax.grad, jax.jacfwd):
        assert_allclose(jax.jit(derivative(CALLS[name]))(8.0), 1 / 12, rtol=1e-5)


def test_a_solver_may_have_defaults_and_options():
    """Oracle: y = 2 for y = y/2 + 1."""
    mapping = lambda y, _: 0.5 * y + 1  # noqa: E731
    find = functools.partial(ok.solvers.anderson, mapping)
    y, info = ok.implicit_fixed_point(mapping, has_aux=True)(find)(
        jnp.zeros(2), max_steps=1
    )
    assert_allclose(y, 0.0, atol=0)
    assert info.result == ok.RESULTS.max_steps_reached
    y, _ = ok.implicit_fixed_point(mapping, has_aux=True)(find)(jnp.zeros(2))
    assert_allclose(y, 2.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a: cube_root(a), "got args 0 times"),
        (lambda a: cube_root(a, args=a, theta=a), "got args 2 times"),
        (lambda a: cube_root(a, a, a), "got 3 arguments"),
        (lambda a: cube_root(a, a, scale=a), "floating array in scale=.*into args"),
        (lambda a: cube_root(a, a, other=1), "unexpected keyword argument 'other'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(call, match):
    """Oracle: the message."""
    with pytest.raises(TypeError, match=match):
        call(jnp.array(8.0))


def numpy_solver(y0, a):
    return np.cbrt(np.asarray(a))


def branching_solver(y0, a):
    return jnp.cbrt(a) if a > 0 else a


def python_solver(y0, a):
    return jnp.cbrt(float(a))


@pytest.mark.parametrize("solve", [numpy_solver, branching_solver, python_solver])
@pytest.mark.parametrize("wrap", [jax.jit, jax.vmap, lambda f: jax.jit(jax.grad(f))])
def test_numpy_under_jit_names_the_host_solver(solve, wrap):
    """Oracle: the message; and 2 by the advice."""
    fit = ok.implicit_root(lambda y, a: y**3 - a)(solve)
    with pytest.raises(TypeError, match=r"`ok.implicit_root` .*`ok.host_solver`"):
        wrap(lambda a: fit(a, a))(jnp.full(3, 8.0) if wrap is jax.vmap else 8.0)
    on_host = ok.implicit_root(lambda y, a: y**3 - a)(ok.host_solver(numpy_solver))
    assert_allclose(jax.jit(on_host)(8.0, 8.0), 2.0, rtol=1e-6)


def test_a_host_solver_may_be_called_by_keyword():
    """Oracle: 1/12."""
    solve = ok.host_solver(lambda y0, theta, power=1.0: np.cbrt(theta) ** power)
    assert_allclose(jax.jit(lambda a: solve(a, theta=a, power=2.0))(8.0), 4.0)
    fit = ok.implicit_root(lambda y, a: y**3 - a)(solve)
    assert_allclose(
        jax.jit(jax.grad(lambda a: fit(a, theta=a)))(8.0), 1 / 12, rtol=1e-5
    )


PROGRAM = """
import jax.numpy as jnp
import optkit as ok
from jax import Array


@ok.implicit_root(lambda y, a: y**3 - a, has_aux=True)
def fit(w0: Array, theta: Array, *, steps: int = 3) -> tuple[Array, int]:
    return jnp.cbrt(theta), steps


@ok.implicit_minimum(lambda y, a: y**4 / 4 - a * y)
@ok.host_solver
def on_host(w0: Array, theta: Array) -> Array:
    return w0


reveal_type(fit)
reveal_type(fit(jnp.ones(2), theta=jnp.ones(2), steps=4))
fit("a string", jnp.ones(2))
on_host(jnp.ones(2), thetas=jnp.ones(2))
"""


def test_a_type_checker_knows_the_decorated_solver(tmp_path):
    """Oracle: basedpyright, which infers the signature and finds two mistakes."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    text = done.stdout.replace("\u00a0", " ")
    assert "ImplicitSolve[(w0: Array, theta: Array, *, steps: int = 3)" in text
    assert 'parameter "w0" of type "Array"' in text
    assert 'No parameter named "thetas"' in text
