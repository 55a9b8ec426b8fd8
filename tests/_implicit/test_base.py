"""What a decorated solver accepts, and what it reports."""

import gc
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxopt
import lineax as lx
import numpy as np
import optax
import optimistix as optx
import pytest
from precision import X64, assert_allclose

import optkit as ok

LEAST = 1e-12 if X64 else 1e-6  # rtol
FAILURES = RuntimeError, ValueError  # JAX's, of a program at its first and later calls


def cube(y, a):
    return y**3 - a


def root(solve=lambda y0, a: jnp.cbrt(a), **options):
    return ok.implicit_root(cube, solver=lx.LU(), **options)(solve)


def slope(solve, a=8.0):
    return jax.grad(lambda a: solve(jnp.ones(()), a))(a)


def numpy_solve(y0, a):
    return np.cbrt(np.asarray(a))


def bisection(y0, a):
    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        return jnp.where(middle**3 < a, middle, low), jnp.where(
            middle**3 < a, high, middle
        )

    return jax.lax.fori_loop(0, 60, halve, (0 * a, 2 * a))[0]


def optax_loop(y0, a):
    tx = optax.sgd(0.05)

    def step(_, carry):
        y, state = carry
        updates, state = tx.update(cube(y, a), state)
        return optax.apply_updates(y, updates), state

    return jax.lax.fori_loop(0, 300, step, (y0, tx.init(y0)))[0]


def optimistix_newton(y0, a):
    return optx.root_find(cube, optx.Newton(LEAST, LEAST), y0, a).value


def jaxopt_descent(y0, a):
    def energy(y, a):
        return y**4 / 4 - a * y

    solver = jaxopt.GradientDescent(
        energy, stepsize=0.05, acceleration=False, tol=1e-12, implicit_diff=False
    )
    return solver.run(y0, a).params


@pytest.mark.parametrize(
    "solve", [numpy_solve, bisection, optax_loop, optimistix_newton, jaxopt_descent]
)
def test_any_solver_may_be_inside(solve):
    """Oracle: 1/(3 y²) at y = 2, whatever the solver's own derivative."""
    assert_allclose(slope(root(solve)), 1 / 12, rtol=1e-10)


def test_a_bisection_has_a_second_derivative():
    """Oracle: -2/(9 y⁵); the bisection itself has derivative zero."""
    fit = root(bisection)
    second = jax.jit(jax.grad(jax.grad(lambda a: fit(jnp.ones(()), a))))(8.0)
    assert_allclose(second, -2 / 9 / 32, rtol=1e-10)


def test_traced_values_may_be_closed_over_by_optimality_and_solver():
    """Oracle: y = (a b)^(1/3), whose mixed derivative is 1/(9 y²)."""

    def y(a, b):
        def solve(y0, a):
            return jnp.cbrt(a * b)

        decorate = ok.implicit_root(lambda y, a: y**3 - a * b, solver=lx.LU())
        return decorate(solve)(None, a)

    grad = jax.jit(jax.grad(y, argnums=1))
    assert_allclose(grad(4.0, 2.0), 4 / 12, rtol=1e-12)
    batched = jax.jit(jax.vmap(jax.grad(y, argnums=1), (None, 0)))
    assert_allclose(batched(4.0, jnp.array([2.0, 2.0])), [4 / 12] * 2, rtol=1e-12)


def test_args_may_hold_anything_and_aux_carries_nothing(key):
    """Oracle: 1/(3 y²); aux has integers and a value whose derivative is zero."""

    class Power(eqx.Module):
        exponent: int = eqx.field(static=True)

    args = {"a": jnp.array(8.0), "n": jnp.array(3), "none": None, "text": "x"}
    args |= {"key": key, "power": Power(3), "flag": True, "number": 1.0}

    def optimality(y, args):
        return y ** args["power"].exponent - args["a"] * args["number"]

    def solve(y0, args):
        y = jnp.cbrt(args["a"])
        return y, {"steps": args["n"], "value": 5 * y}

    fit = ok.implicit_root(optimality, solver=lx.LU(), has_aux=True)(solve)

    def total(a):
        y, aux = fit(None, {**args, "a": a})
        return y + aux["value"], aux["steps"]

    (value, steps), grad = jax.jit(jax.value_and_grad(total, has_aux=True))(8.0)
    assert_allclose((value, steps, grad), (12, 3, 1 / 12), rtol=1e-12)
    none = ok.implicit_root(lambda y, n: y - 1.0)(lambda y0, n: jnp.ones(()))
    assert none(None, 3) == 1.0


def test_the_starting_point_has_a_zero_derivative():
    """Oracle: the equation does not depend on y0."""
    fit = root(lambda y0, a: jnp.cbrt(a) + 0 * y0)
    assert jax.grad(lambda y0: fit(y0, jnp.array(8.0)))(1.0) == 0.0


def test_numpy_arrays_are_taken_in_the_widest_dtype_there_is():
    """Oracle: ∂y/∂a = 1 for y = a, without a warning, also in float32."""
    fit = ok.implicit_root(lambda y, a: y - a, solver=lx.LU())(lambda y0, a: 0 * y0 + a)
    one = np.ones(2)
    assert_allclose(jax.jacobian(lambda a: fit(one, a))(one), np.eye(2), rtol=1e-12)


def test_an_equation_need_not_depend_on_what_is_perturbed():
    """Oracle: u = a and v = √3, by hand; in one leaf of two, and in all."""

    @ok.implicit_root(lambda y, a: {"u": y["u"] - a, "v": y["v"] ** 2 - 3})
    def both(y0, a):
        return {"u": a, "v": jnp.sqrt(3 + 0 * y0)}

    @ok.implicit_root(lambda y, a: y**2 - 3)
    def alone(y0, a):
        return jnp.sqrt(3 + 0 * y0)

    for derivative in (jax.jacfwd, jax.jacrev):
        assert derivative(lambda a: both(0.0, a))(2.0) == {"u": 1, "v": 0}
        assert derivative(lambda a: alone(0.0, a))(2.0) == 0


def test_mixed_and_narrow_dtypes_and_none_leaves():
    """Oracle: y = a/2 by its objective, in the precision of each leaf."""

    def objective(y, a):
        terms = jax.tree.map(lambda y, a: jnp.sum((y - a / 2).astype(float) ** 2), y, a)
        return terms["narrow"] + terms["wide"] + terms["half"]

    a = {
        "narrow": jnp.ones(2, jnp.float32),
        "wide": jnp.ones(3),
        "half": jnp.ones((), jnp.bfloat16),
        "none": None,
    }
    fit = ok.implicit_minimum(objective)(lambda y0, a: jax.tree.map(lambda a: a / 2, a))
    _, tangent = jax.jvp(jax.jit(lambda a: fit(None, a)), (a,), (a,))
    assert jax.tree.map(jnp.result_type, tangent) == jax.tree.map(jnp.result_type, a)
    jax.tree.map(lambda t: assert_allclose(t.astype(float), 0.5, rtol=1e-2), tangent)


def test_the_relative_error_does_not_depend_on_the_scale_of_the_loss():
    """Oracle: the float64 solution; float32 at loss scales 1e-9, 1 and 1e9."""
    h = jnp.linspace(1.0, 30.0, 8, dtype=jnp.float32)

    def objective(y, a):
        return 0.5 * jnp.vdot(h, y**2) + 0.1 * jnp.sum(y) ** 2 - a * jnp.sum(y)

    H = np.diag(np.asarray(h, float)) + 0.2
    want = np.linalg.solve(H, np.ones(8)).sum()
    fit = ok.implicit_minimum(objective)(
        lambda y0, a: a * jnp.asarray(np.linalg.solve(H, np.ones(8)), jnp.float32)
    )

    @jax.jit
    def grad(scale):
        return jax.grad(lambda a: scale * jnp.sum(fit(None, a)))(jnp.float32(1.0))

    for scale in (1e-9, 1.0, 1e9):
        got = float(grad(jnp.float32(scale))) / scale
        assert_allclose(got, want, rtol=1e-5)


def diagonal(h, a):
    def objective(y, a):
        return 0.5 * jnp.vdot(h, y**2) - jnp.vdot(a, y)

    return objective


def gradient_at_condition_1e6(dtype):
    h = jnp.logspace(0, -6, 20, dtype=dtype)
    fit = ok.implicit_minimum(diagonal(h, h), solver=ok.CG(1e-9))(lambda y0, a: a / h)
    return jax.jit(jax.grad(lambda a: jnp.sum(fit(None, a))))(h)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [pytest.param(jnp.float64, 1e-5, marks=pytest.mark.x64), (jnp.float32, 1e-3)],
)
def test_a_badly_conditioned_solve_is_right_or_reported(dtype, rtol):
    """Oracle: 1/h for κ = 1e6 in float64; in float32 an error below κ eps."""
    want = np.logspace(0, 6, 20)
    assert_allclose(gradient_at_condition_1e6(dtype), want, rtol=rtol)


@pytest.mark.parametrize("solver", [None, ok.GMRES(), lx.LU()], ids=repr)
def test_a_singular_jacobian_raises_in_both_modes(solver):
    """Oracle: ∂_yF = [[1, 1], [1, 1]]."""
    fit = ok.implicit_root(lambda y, a: jnp.sum(y) - a, solver=solver)(
        lambda y0, a: a / 2
    )
    a = jnp.array([1.0, 2.0])
    for transform in (jax.jacrev, jax.jacfwd):
        with pytest.raises(FAILURES, match="singular"):
            jax.block_until_ready(transform(lambda a: fit(None, a)[0])(a))


def test_a_solution_that_is_not_finite_raises_when_differentiated():
    """Oracle: the message."""
    fit = root(lambda y0, a: a * jnp.nan)
    assert jnp.isnan(fit(None, jnp.array(8.0)))
    with pytest.raises(FAILURES, match="solution to differentiate is NaN"):
        jax.block_until_ready(slope(fit))


def test_static_mistakes_say_what_to_do():
    """Oracle: the messages."""
    a = jnp.ones(3)
    with pytest.raises(ValueError, match="one equation per unknown"):
        ok.implicit_root(lambda y, a: y[:2] - a[:2])(lambda y0, a: a)(None, a)
    with pytest.raises(ValueError, match="in the structure of the solution y"):
        ok.implicit_fixed_point(lambda y, a: (y,))(lambda y0, a: a)(None, a)
    with pytest.raises(TypeError, match="in the dtype of the solution y, got bfloat16"):
        ok.implicit_root(lambda y, a: y.astype(jnp.bfloat16))(lambda y0, a: a)(None, a)
    with pytest.raises(ValueError, match="one real scalar"):
        ok.implicit_minimum(lambda y, a: y)(lambda y0, a: a)(None, a)
    with pytest.raises(ValueError, match=r"solver that returns \(y, aux\), got"):
        root(has_aux=True)(None, a)
    with pytest.raises(TypeError, match="real floating leaves"):
        ok.implicit_root(cube)(lambda y0, a: 3)(None, a)
    with pytest.raises(ValueError, match="not symmetric"):
        ok.implicit_root(cube, solver=ok.CG())
    with pytest.raises(ValueError, match="step_size"):
        ok.implicit_root(cube, solver=ok.Neumann(3))
    with pytest.raises(ValueError, match="damping"):
        ok.implicit_minimum(cube, damping=-1.0)


@pytest.fixture
def compilations():
    """A list that grows by one whenever XLA compiles."""
    found = []

    def listen(event: str, duration_secs: float, **kwargs: str | int):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append((duration_secs, kwargs))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_factorisation_of_a_narrow_solution_says_what_to_do():
    """Oracle: the message; 1/2 by a method for any dtype."""
    a = jnp.ones(2, jnp.bfloat16)

    def slope_by(solver):
        decorate = ok.implicit_root(lambda y, a: 2 * y - a, solver=solver)
        return jax.grad(lambda a: decorate(lambda y0, a: a / 2)(None, a)[0])(a)

    with pytest.raises(TypeError, match=r"`lx.LU` needs y in float32.*got bfloat16"):
        slope_by(lx.LU())
    assert_allclose(slope_by(ok.GMRES())[0].astype(float), 0.5, rtol=2**-7)


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.hessian])
def test_an_eager_derivative_compiles_once(derivative, compilations):
    """Oracle: XLA compiles nothing after the first call, also for new arrays."""
    scale = jnp.ones(())

    def scaled(y, a):
        return scale * jnp.maximum(y, 0) ** 3 - a

    fit = ok.implicit_root(scaled, solver=lx.LU())(numpy_solve)
    counts = []
    for a in (1.0, 8.0, 27.0):
        scale = jnp.array(1.0 + 1e-4 * a)
        derivative(lambda a: fit(None, a))(jnp.array(a)).block_until_ready()
        counts.append(len(compilations))
    assert 0 < counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("derivative", [jax.grad, jax.jacfwd, jax.hessian])
def test_a_decorator_that_is_made_anew_compiles_once(derivative, compilations):
    """Oracle: XLA compiles nothing after the first; 1/(3 s y²) = s/12 for y³ = s³a."""
    counts = []
    for scale in (1.0, 2.0, 3.0):

        def root_of(a, scale):
            fit = ok.implicit_root(lambda y, a: y**3 - scale**3 * a, solver=lx.LU())
            return fit(lambda y0, a: scale * jnp.cbrt(a))(None, a)

        slope = derivative(root_of)(8.0, jnp.array(scale))
        counts.append(len(compilations))
        if derivative is not jax.hessian:
            assert_allclose(slope, scale / 12, rtol=1e-12)
    assert 0 < counts[0] <= counts[1] == counts[2]


def test_functions_of_one_line_are_told_apart():
    """Oracle: closed forms, of three conditions that the same lambda makes."""

    def slope_of(function):
        fit = ok.implicit_root(lambda y, a: function(y) - a, solver=lx.LU())
        return slope(fit(lambda y0, a: jnp.array(1.0)), 1.0)

    assert_allclose(slope_of(jnp.sin), 1 / np.cos(1.0), rtol=1e-12)
    assert_allclose(slope_of(jnp.exp), 1 / np.e, rtol=1e-12)
    assert_allclose(slope_of(lambda y: 2.0 * y), 0.5, rtol=1e-12)
    assert_allclose(slope_of(lambda y: 3.0 * y), 1 / 3, rtol=1e-12)
    assert_allclose(slope_of(jax.nn.relu), 1.0, rtol=1e-12)
    assert_allclose(slope_of(jax.nn.softplus), 1 + np.exp(-1.0), rtol=1e-12)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="not Linux")
@pytest.mark.parametrize("is_custom", [False, True])
def test_a_decorator_that_is_made_anew_keeps_no_memory(is_custom):
    """Oracle: the resident memory; a kept program takes 7 MB, also of a relu."""
    activation = jax.nn.relu if is_custom else lambda y: y

    def once():
        fit = ok.implicit_root(lambda y, a: activation(y) ** 3 - a)
        jax.grad(lambda a: fit(lambda y0, a: jnp.cbrt(a))(None, a))(8.0)

    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    for _ in range(3):
        once()
    before = resident()
    for _ in range(10):
        once()
    assert resident() - before < 20


def test_an_eager_derivative_sees_what_a_custom_rule_closes_over():
    """Oracle: closed form; the rule returns s times the slope of y³."""
    scale = 1.0

    @jax.custom_jvp
    def power(y):
        return y**3

    @power.defjvp
    def _(primals, tangents):
        (y,), (dy,) = primals, tangents
        return y**3, scale * 3 * y**2 * dy

    fit = ok.implicit_root(lambda y, a: power(y) - a, solver=lx.LU())(
        lambda y0, a: jnp.cbrt(a)
    )
    assert_allclose(slope(fit), 1 / 12, rtol=1e-12)
    scale = 2.0
    assert_allclose(slope(fit), 1 / 24, rtol=1e-12)


def test_a_function_may_be_an_object_without_weak_references():
    """Oracle: closed form."""

    class Cube:
        __slots__ = ()

        def __call__(self, y, a):
            return y**3 - a

    fit = ok.implicit_root(Cube(), solver=lx.LU())(lambda y0, a: jnp.cbrt(a))
    for _ in range(2):
        assert_allclose(slope(fit), 1 / 12, rtol=1e-12)


@pytest.mark.parametrize("nothing", [(), jnp.zeros((0, 2))])
def test_a_solution_without_entries_has_a_derivative_without_entries(nothing):
    """Oracle: structure and shape."""
    fit = ok.implicit_root(lambda y, a: y)(lambda y0, a: nothing)
    a = jnp.ones(2)
    y, tangent = jax.jvp(lambda a: fit(None, a), (a,), (a,))
    assert jax.tree.map(jnp.shape, y) == jax.tree.map(jnp.shape, nothing)
    assert jax.tree.map(jnp.shape, tangent) == jax.tree.map(jnp.shape, nothing)


@pytest.mark.parametrize("as_scale", [float, np.asarray, jnp.asarray])
def test_an_eager_derivative_sees_what_has_changed_in_a_closure(as_scale):
    """Oracle: y = (a/s)^(1/3), so 1/(3 s y²) = 1/12 at s = 1 and 1/24 at s = 2."""
    scale = as_scale(1.0)
    fit = ok.implicit_root(lambda y, a: scale * y**3 - a, solver=lx.LU())(
        lambda y0, a: jnp.cbrt(a / scale)
    )
    assert_allclose(slope(fit), 1 / 12, rtol=1e-12)
    scale = as_scale(2.0)
    assert_allclose(slope(fit, 16.0), 1 / 24, rtol=1e-12)
