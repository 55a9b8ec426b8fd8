"""Anderson acceleration: its equations, its failures, batches."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from precision import FLOAT, X64, assert_allclose

import optkit as ok

LEAST = 1e-12 if X64 else 1e-6  # rtol


def contraction(key, n):
    """z = ½ tanh(W z + x), |W| = 1.6: the mapping contracts by 0.8 or better."""
    k1, k2 = jr.split(key)
    q, _ = np.linalg.qr(jr.normal(k1, (n, n)))
    return jnp.asarray(1.6 * q), 0.3 * jr.normal(k2, (n,))


def layer(z, args):
    W, x = args
    return 0.5 * jnp.tanh(W @ z + x)


def numpy_anderson(f, y, steps, m, beta, delta):
    """The docstring's equations: the iterates y_0, y_1, ..."""
    ys, rs, iterates = [], [], [y]
    for _ in range(steps):
        ys, rs = [*ys, y][-m:], [*rs, f(y) - y][-m:]
        R = np.array(rs)
        K = R @ R.T
        u = np.linalg.solve(K + delta * np.diag(np.diag(K)), np.ones(len(rs)))
        alpha = u / u.sum()
        y = alpha @ (np.array(ys) + beta * R)
        iterates.append(y)
    return iterates


def test_iterates_are_those_of_the_equations(key):
    """Oracle: NumPy transcription over 8 steps, through max_steps and one more f."""
    W, x = contraction(key, 6)

    def f(z):
        return 0.5 * np.tanh(np.asarray(W) @ z + np.asarray(x))

    expected = numpy_anderson(f, np.zeros(6), 8, 3, 0.8, 1e-6)
    solve = functools.partial(
        ok.solvers.anderson, layer, history=3, mixing=0.8, ridge=1e-6, rtol=0.0
    )
    for steps in (2, 8):
        z, info = solve(jnp.zeros(6), (W, x), max_steps=steps)
        y = expected[steps - 1]  # the last that was evaluated, and the best
        assert_allclose(z, y, rtol=1e-10)
        error = np.linalg.norm(f(y) - y) / np.linalg.norm(f(y))
        assert_allclose(info.residual, error, rtol=1e-8)
        assert info.num_steps == steps
        assert info.result == ok.RESULTS.max_steps_reached


def test_it_finds_the_limit_of_picard_faster(key):
    """Oracle: 200 Picard iterations in NumPy; history=1 is Picard."""
    W, x = contraction(key, 20)
    z = np.zeros(20)
    for _ in range(200):
        z = 0.5 * np.tanh(np.asarray(W) @ z + np.asarray(x))
    fast, info = ok.solvers.anderson(layer, jnp.zeros(20), (W, x), rtol=LEAST)
    _, slow = ok.solvers.anderson(layer, jnp.zeros(20), (W, x), rtol=LEAST, history=1)
    assert_allclose(fast, z, atol=1e-12)
    assert info.result == slow.result == ok.RESULTS.successful
    assert info.residual <= LEAST
    assert info.num_steps < slow.num_steps


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_linear_mapping_takes_as_many_steps_as_eigenvalues(key, size):
    """Oracle: the dense solve; 4 eigenvalues, no contraction, any scale."""
    q, _ = jnp.linalg.qr(jr.normal(key, (12, 12)))
    A = (q * jnp.tile(jnp.array([-3.0, 0.5, 0.9, 2.0]), 3)) @ q.T
    b = size * jnp.ones(12)
    y, info = ok.solvers.anderson(
        lambda y, _: A @ y + b, jnp.zeros(12), rtol=1e-9 if X64 else 1e-5
    )
    assert_allclose(y, jnp.linalg.solve(jnp.eye(12) - A, b), rtol=1e-7, float32=1e-4)
    assert info.num_steps <= (8 if X64 else 12)


def test_trees_and_narrow_dtypes(key):
    """Oracle: the same numbers in one float64 vector; None stays."""
    W, x = contraction(key, 6)
    expected, _ = ok.solvers.anderson(
        layer, jnp.zeros(6), (W, x), rtol=max(LEAST, 1e-10)
    )

    def mapping(y, args):
        z = jnp.concatenate([y["a"], y["b"][0].astype(float)])
        new = layer(z, args)
        return {"a": new[:2], "b": (new[2:].astype(y["b"][0].dtype), None)}

    for dtype, rtol in (
        (FLOAT, max(LEAST, 1e-10)),
        (jnp.float32, 1e-6),
        (jnp.bfloat16, 1e-2),
    ):
        y0 = {"a": jnp.zeros(2), "b": (jnp.zeros(4, dtype), None)}
        y, info = ok.solvers.anderson(mapping, y0, (W, x), rtol=rtol)
        assert info.result == ok.RESULTS.successful
        assert y["b"][0].dtype == dtype
        assert y["b"][1] is None
        assert_allclose(y["a"], expected[:2], atol=rtol)
        assert_allclose(y["b"][0].astype(float), expected[2:], atol=rtol)


def test_each_sample_of_a_batch_stops_by_itself(key):
    """Oracle: a loop over the samples."""
    W, _ = contraction(key, 5)
    x = jnp.logspace(-6, 1, 4)[:, None] * jr.normal(key, (4, 5))

    def solve(x):
        return ok.solvers.anderson(
            layer, jnp.zeros(5), (W, x), rtol=1e-8 if X64 else 1e-6
        )

    solve = jax.jit(solve)
    z, info = jax.vmap(solve)(x)
    steps = []
    for i, one in enumerate(x):
        alone, alone_info = solve(one)
        assert_allclose(z[i], alone, rtol=1e-12)
        steps.append(alone_info.num_steps)
    assert_allclose(info.num_steps, steps)
    assert len(set(map(int, steps))) > 1


def test_a_singular_gram_matrix_does_no_harm():
    """Oracle: by hand; residuals that are all parallel, and a start at the solution."""

    def halve(y, b):
        return 0.5 * y + b

    y, info = ok.solvers.anderson(halve, jnp.array([8.0, 4.0]), jnp.zeros(2), atol=1e-9)
    assert info.result == ok.RESULTS.successful
    assert_allclose(y, 0, atol=1e-8)
    y, info = ok.solvers.anderson(halve, 2 * jnp.ones(2), jnp.ones(2))
    assert info.num_steps == 1
    assert_allclose(y, 2)
    y, info = ok.solvers.anderson(lambda y, _: -y + 2, jnp.array([3.0, 3.0]))
    assert_allclose(y, 1)
    assert info.num_steps == 3


def test_failures_are_reported_and_the_best_iterate_returned():
    """Oracle: by hand, a mapping without fixed point, and one that turns NaN."""
    y, info = ok.solvers.anderson(lambda y, _: y + 1, jnp.array([1.0]), max_steps=20)
    assert info.result == ok.RESULTS.max_steps_reached
    assert jnp.isfinite(y)
    assert_allclose(info.residual, 1 / (y[0] + 1))
    y, info = ok.solvers.anderson(
        lambda y, _: jnp.sqrt(y) - 5, jnp.array([1.0]), history=1
    )
    assert info.result == ok.RESULTS.nonfinite_iterate
    assert_allclose(y, 1.0)
    y, info = ok.solvers.anderson(lambda y, _: y * jnp.nan, jnp.array([1.0]))
    assert info.result == ok.RESULTS.nonfinite_iterate
    assert_allclose(y, 1.0)
    assert jnp.isinf(info.residual)


@pytest.mark.parametrize("factor", [2.5, -2.5, 1e3])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, FLOAT])
def test_an_iteration_that_overflows_is_never_successful(factor, dtype):
    """Oracle: |r| / |f| = |1 - 1 / factor| while y = factor y + 1 grows.

    |f| overflows before |r| and before any entry, and every |r| is below infinity.
    """
    mapping = lambda y, _: factor * y + 1  # noqa: E731
    y0 = jnp.ones(100, dtype)
    y, info = ok.solvers.anderson(mapping, y0, history=1, max_steps=1000)
    assert info.result == ok.RESULTS.nonfinite_iterate
    assert jnp.all(jnp.isfinite(y))
    assert_allclose(info.residual, abs(1 - 1 / factor), rtol=0.5)


def test_a_fixed_point_whose_norm_overflows_is_found():
    """Oracle: y = 1e38 in 100 entries of float32, whose norm is 1e39."""
    y0 = jnp.full(100, 0.99e38, jnp.float32)
    y, info = ok.solvers.anderson(lambda y, _: 0.5 * y + 0.5e38, y0)
    assert info.result == ok.RESULTS.successful
    assert_allclose(y, 1e38, rtol=1e-5)


@pytest.mark.x64
@pytest.mark.parametrize(
    ("n", "upper", "minimum"),
    [(2, 0.8, 0.04), (2, 0.5, 0.25), (5, 0.8, 1.148224), (20, 0.8, 15.899985)],
)
@pytest.mark.parametrize("step_size", [1e-3, 5e-4])
def test_a_projected_gradient_step_needs_fewer_evaluations(
    n, upper, minimum, step_size
):
    """Oracle: SciPy's L-BFGS-B on Rosenbrock's function on [0, upper]; history=1."""

    def rosenbrock(y):
        return jnp.sum(100 * (y[1:] - y[:-1] ** 2) ** 2 + (1 - y[:-1]) ** 2)

    def mapping(y, _):
        return jnp.clip(y - step_size * jax.grad(rosenbrock)(y), 0, upper)

    solve = functools.partial(ok.solvers.anderson, mapping, max_steps=5000)
    y, info = jax.jit(solve)(jnp.zeros(n))
    _, plain = jax.jit(functools.partial(solve, history=1))(jnp.zeros(n))
    assert info.result == ok.RESULTS.successful
    assert_allclose(rosenbrock(y), minimum, rtol=1e-4)
    assert info.num_steps < plain.num_steps


@pytest.mark.parametrize("factor", [-3.0, -10.0])
def test_a_mapping_that_expands_is_still_extrapolated(key, factor):
    """Oracle: the dense solve; residuals grow by the factor before they fall."""
    q, _ = jnp.linalg.qr(jr.normal(key, (12, 12)))
    A = (q * jnp.tile(jnp.array([factor, 0.3, 5.0, 0.7]), 3)) @ q.T
    y, info = ok.solvers.anderson(lambda y, _: A @ y + 1, jnp.zeros(12))
    assert info.result == ok.RESULTS.successful
    expected = jnp.linalg.solve(jnp.eye(12) - A, jnp.ones(12))
    assert_allclose(y, expected, rtol=1e-3, float32=1e-2)


@pytest.mark.parametrize("max_steps", [3, 100])
def test_aux_is_that_of_the_returned_iterate(key, max_steps):
    """Oracle: one more evaluation; the run without aux; the dense derivative."""
    W, x = contraction(key, 4)

    def mapping(z, args):
        new = layer(z, args)
        return new, {"norm": jnp.sum(z**2), "count": jnp.int32(7), "none": None}

    options = {"max_steps": max_steps, "rtol": LEAST}
    find = functools.partial(ok.solvers.anderson, mapping, has_aux=True, **options)
    z, info = find(jnp.zeros(4), (W, x))
    same, plain = ok.solvers.anderson(layer, jnp.zeros(4), (W, x), **options)
    assert_allclose(z, same, rtol=1e-12)
    assert info.num_steps == plain.num_steps
    assert_allclose(info.aux["norm"], jnp.sum(z**2), rtol=1e-12)
    assert info.aux["count"] == 7
    solve = ok.implicit_fixed_point(lambda z, a: mapping(z, a)[0], has_aux=True)(find)
    plainly = functools.partial(ok.solvers.anderson, layer, **options)
    plainly = ok.implicit_fixed_point(layer, has_aux=True)(plainly)
    got, want = (
        jax.jacrev(lambda x, solve=solve: solve(jnp.zeros(4), (W, x))[0])(x)
        for solve in (solve, plainly)
    )
    assert_allclose(got, want, rtol=1e-10)


def test_a_mapping_without_aux_says_so():
    """Oracle: the message."""
    with pytest.raises(ValueError, match=r"returns \(f, aux\), got"):
        ok.solvers.anderson(lambda y, _: y, jnp.ones(2), has_aux=True)


def test_the_implicit_derivative_goes_through(key):
    """Oracle: the dense implicit function theorem."""
    W, x = contraction(key, 4)
    solve = functools.partial(ok.solvers.anderson, layer, rtol=LEAST / 10)
    solve = ok.implicit_fixed_point(layer, has_aux=True)(solve)
    z, _ = solve(jnp.zeros(4), (W, x))
    dz = jax.jacrev(layer)(z, (W, x))
    dx = jax.jacrev(layer, argnums=1)(z, (W, x))[1]
    got = jax.jit(jax.jacrev(lambda x: solve(jnp.zeros(4), (W, x))[0]))(x)
    assert_allclose(got, jnp.linalg.solve(jnp.eye(4) - dz, dx), rtol=1e-8)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"history": 0}, "history >= 1"),
        ({"mixing": 0.0}, "mixing > 0"),
        ({"rtol": -1.0}, "rtol >= 0"),
        ({"max_steps": 0}, "max_steps >= 1"),
        ({"ridge": -1.0}, "ridge >= 0"),
    ],
)
def test_bad_options_are_named(options, match):
    """Oracle: the message."""
    with pytest.raises(ValueError, match=match):
        ok.solvers.anderson(lambda y, _: y, jnp.ones(2), **options)


def test_a_mapping_of_another_shape_is_named():
    """Oracle: the message."""
    with pytest.raises(
        ValueError, match=r"needs mapping\(y, args\) in the shape of y, got"
    ):
        ok.solvers.anderson(lambda y, _: y[:1], jnp.ones(2))
    with pytest.raises(TypeError, match="real floating leaves"):
        ok.solvers.anderson(lambda y, _: y, jnp.arange(2))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_fixed_point_does_not_depend_on_the_size_of_y(size):
    """Oracle: closed form. The square of 1e-30 is zero in float32, of 1e30 infinite."""
    a = jnp.asarray([size, -2 * size], jnp.float32)
    mapping = lambda y, a: y * jnp.array([0.5, -0.25], a.dtype) + a  # noqa: E731
    y, info = ok.solvers.anderson(mapping, jnp.zeros_like(a), a)
    assert ok.RESULTS[info.result] == ""
    assert_allclose(y, np.array([2 * size, -1.6 * size]), rtol=1e-5)


def test_leaves_of_two_precisions_do_not_make_the_weights_singular():
    """Oracle: y = 2a. Parallel residuals differ by the rounding of the narrow leaf."""
    a = {"f4": jnp.asarray([-1.52, -0.05, -0.82], jnp.float32), "f8": jnp.ones(())}
    mapping = lambda y, a: jax.tree.map(lambda y, a: 0.5 * y + a, y, a)  # noqa: E731
    y, info = ok.solvers.anderson(mapping, jax.tree.map(jnp.zeros_like, a), a)
    assert ok.RESULTS[info.result] == ""
    assert_allclose(y["f4"], 2 * a["f4"], rtol=1e-5)
    assert_allclose(y["f8"], 2.0, rtol=1e-5)


def test_a_bfloat16_iteration_ends_where_rounding_does(key):
    """Oracle: success at the default `rtol`, but not at 1e-5; the float32 run, within
    2 eps/(1 - 0.8) for a residual of eps and equal rounding.
    """
    W, x = contraction(key, 50)

    def solve(dtype, **options):
        args = W.astype(dtype), x.astype(dtype)
        return ok.solvers.anderson(layer, jnp.zeros(50, dtype), args, **options)

    narrow, info = solve(jnp.bfloat16)
    assert info.result == ok.RESULTS.successful
    assert solve(jnp.bfloat16, rtol=1e-5)[1].result == ok.RESULTS.max_steps_reached
    error = narrow.astype(jnp.float32) - (wide := solve(jnp.float32)[0])
    assert jnp.linalg.norm(error) < 10 * 2**-7 * jnp.linalg.norm(wide)


def test_an_iterate_keeps_the_sharding_of_its_type():
    """Oracle: the sharding of y0, on a mesh with an explicit axis."""
    mesh = jax.make_mesh((1,), ("d",), (AxisType.Explicit,))
    with jax.set_mesh(mesh):
        a = jax.device_put(jnp.ones(4), NamedSharding(mesh, P("d")))
        y, info = jax.jit(
            lambda a: ok.solvers.anderson(lambda y, a: 0.5 * y + a, a, a)
        )(a)
    assert info.result == ok.RESULTS.successful
    assert y.sharding.spec == P("d")
