"""Functions with a `jax.custom_vjp`, as attention kernels and adjoint solvers have."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok

X = jnp.linspace(0.1, 1.0, 3)
V = jnp.array([1.0, 1.5, -1.0])


def reverse_only(backward):
    """The sine, with a rule for its reverse mode only."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, u: (backward(x, u),))
    return sine


@jax.custom_vjp
def scaled_cosine(x, u):
    return jnp.cos(x) * u


scaled_cosine.defvjp(
    lambda x, u: (jnp.cos(x) * u, (x, u)),
    lambda res, w: (-jnp.sin(res[0]) * res[1] * w, jnp.cos(res[0]) * w),
)


attention = reverse_only(lambda x, u: jnp.cos(x) * u)
external = reverse_only(
    lambda x, u: jax.pure_callback(
        lambda x, u: np.cos(x) * u, jax.typeof(u), x, u, vmap_method="sequential"
    )
)
SINES = {
    "a rule in JAX": attention,
    "in jit and scan": jax.jit(
        lambda x: jax.lax.scan(lambda y, _: (attention(y), None), x, None, length=1)[0]
    ),
    "a rule with a rule": reverse_only(scaled_cosine),
}


def newton(y0, a):
    return jax.lax.fori_loop(0, 200, lambda _, y: 1 - 0.5 * jnp.sin(y) * a, y0)


def equation(sine):
    return lambda y, a: y + 0.5 * sine(y) * a - 1.0


def products(sine):
    """Jv by everything that needs it."""
    C = ok.gauss_newton(lambda w, x: sine(w * x), ok.SquaredError(), X, X)
    found = {
        "mv": C.mv(V),
        "matrix": C.as_matrix(),
        "inverse": ok.invert(C, ok.CG(1e-6), damping=0.1).mv(V),
    }
    for solver in (lx.LU(), ok.GMRES(1e-6), ok.Neumann(60, step_size=0.5)):
        fit = ok.implicit_root(equation(sine), solver=solver)(newton)
        name = type(solver).__name__
        found[f"{name}, forward"] = jax.jacfwd(lambda a, fit=fit: fit(X, a))(V)
        found[f"{name}, reverse"] = jax.jacrev(lambda a, fit=fit: fit(X, a))(V)
        again = jax.grad(lambda a, fit=fit: jnp.sum(fit(X, a) ** 2))
        found[f"{name}, again"] = jax.jacrev(again)(V)
    step = ok.optimality.newton(equation(sine))
    found["Newton's step"] = jax.jacrev(lambda a: step(X, a))(V)
    fixed = ok.implicit_fixed_point(lambda y, a: 1 - 0.5 * sine(y) * a, solver=lx.LU())
    found["fixed point"] = jax.jacfwd(lambda a: fixed(newton)(X, a))(V)
    return found


@pytest.mark.parametrize("name", SINES)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_product_is_the_transpose_of_the_reverse_rule(name, wrap):
    """Oracle: the same by JAX's own rule for the sine."""
    sine = SINES[name]
    got = wrap(lambda: products(sine))()
    for where, want in products(jnp.sin).items():
        assert_allclose(got[where], want, rtol=1e-5, atol=1e-6, err_msg=where)


def test_the_check_of_a_derivative_runs(key):
    """Oracle: its verdict."""
    fit = ok.implicit_root(equation(attention), solver=lx.LU())(newton)
    report = ok.check_implicit(fit, V, y0=X, key=key)
    assert "agrees" in report.verdict


def loss(w):
    return jnp.sum(external(w))


def jacobian_by(solver):
    fit = ok.implicit_root(equation(external), solver=solver)(newton)
    return jax.jacfwd(lambda a: fit(X, a))(V)


CALLS = {
    "gauss_newton": lambda: ok.gauss_newton(
        lambda w, x: external(w * x), ok.SquaredError(), X, X
    ).mv(V),
    "hessian": lambda: ok.hessian(loss, X).mv(V),
    "hvp": lambda: ok.hvp(loss, X, V),
    "value_grad_and_hvp": lambda: ok.value_grad_and_hvp(loss)(X, V),
    "value_grad_and_diag": lambda: ok.value_grad_and_diag(loss)(X, key=jr.key(0)),
    "implicit_root": lambda: jacobian_by(lx.LU()),
    "implicit_minimum": lambda: jax.grad(
        lambda a: ok.implicit_minimum(lambda y, a: a * loss(y))(lambda y, a: y)(X, a)[0]
    )(1.0),
    "optimality.newton": lambda: ok.optimality.newton(equation(external))(X, V),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_rule_that_cannot_be_transposed_names_the_call(name, wrap):
    """Oracle: the message."""
    text = rf"`ok.{name}` cannot differentiate the function forwards"
    with pytest.raises(TypeError, match=text):
        wrap(lambda: CALLS[name]())()


def test_the_gradient_of_a_root_needs_no_forward_rule():
    """Oracle: the same by JAX's own rule, where the rule is a callback."""

    def gradient(sine):
        fit = ok.implicit_root(equation(sine), solver=ok.GMRES(1e-6))(newton)
        return jax.grad(lambda a: jnp.sum(fit(X, a)))(V)

    assert_allclose(gradient(external), gradient(jnp.sin), rtol=1e-5)


def test_an_error_of_the_function_itself_is_not_renamed():
    """Oracle: the message."""

    def broken(w, x):
        raise TypeError("no such model")

    with pytest.raises(TypeError, match=r"^no such model"):
        ok.gauss_newton(broken, ok.SquaredError(), X, X).mv(V)
