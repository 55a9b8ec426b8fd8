"""Conjugate gradients: scale, dtypes, failures."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import pytest
from precision import X64, assert_allclose

import optkit as ok


def spd(key, n, condition, dtype=float):
    """A random matrix with log-uniform eigenvalues from 1 to `condition`."""
    q, _ = jnp.linalg.qr(jr.normal(key, (n, n)))
    values = jnp.logspace(0.0, np.log10(condition), n)
    return ((q * values) @ q.T).astype(dtype)


LEAST = 1e-12 if X64 else 1e-6  # rtol


def tagged(matrix):
    return lx.MatrixLinearOperator(matrix, lx.symmetric_tag)


@pytest.mark.parametrize(
    "rtol", [1e-2, 1e-6 if X64 else 1e-5, pytest.param(1e-10, marks=pytest.mark.x64)]
)
@pytest.mark.parametrize("condition", [10, 1e3])
def test_the_true_residual_is_reached_and_reported(key, rtol, condition):
    """Oracle: b - A x; steps within the classical bound ½ √κ ln(2 √κ / rtol)."""
    A, b = spd(key, 60, condition), jr.normal(key, (60,))
    solution = ok.invert(tagged(A), ok.CG(rtol)).solve(b)
    residual = np.linalg.norm(b - A @ solution.value) / np.linalg.norm(b)
    assert_allclose(solution.stats["residual"], residual, rtol=1e-3, atol=1e-14)
    assert residual <= rtol
    bound = 0.5 * np.sqrt(condition) * np.log(2 * np.sqrt(condition) / rtol)
    assert int(solution.stats["num_steps"]) <= bound + 2


def test_steps_are_those_of_textbook_conjugate_gradients(key):
    """Oracle: NumPy transcription of the method; m steps give its m-th iterate."""
    A, b = spd(key, 20, 100), jr.normal(key, (20,))
    x, r = np.zeros(20), np.array(b)
    p = r
    for m in range(1, 6):
        alpha = r @ r / (p @ A @ p)
        x, r_new = x + alpha * p, r - alpha * (A @ p)
        p, r = r_new + (r_new @ r_new) / (r @ r) * p, r_new
        solution = ok.invert(tagged(A), ok.CG(LEAST, max_steps=m)).solve(b)
        assert solution.result == ok.RESULTS.max_steps_reached
        assert solution.stats["num_steps"] == m
        assert_allclose(solution.value, x, rtol=1e-10)


@pytest.mark.parametrize("loss_scale", [1e-9, 1e-3, 1.0, 1e9])
@pytest.mark.parametrize("b_scale", [1e-20, 1.0, 1e20])
def test_the_relative_error_does_not_depend_on_scale_in_float32(
    key, loss_scale, b_scale
):
    """Oracle: the float64 solution; the same iterates at every scale."""
    A, b = spd(key, 30, 100), jr.normal(key, (30,))
    exact = jnp.linalg.solve(A, b)
    A32 = tagged((loss_scale * A).astype(jnp.float32))
    solution = ok.invert(A32, ok.CG(1e-5)).solve((b_scale * b).astype(jnp.float32))
    assert solution.result == ok.RESULTS.successful
    got = np.asarray(solution.value, np.float64) * loss_scale / b_scale
    assert np.linalg.norm(got - exact) < 1e-4 * np.linalg.norm(exact)
    assert solution.stats["num_steps"] in range(36, 41)


def test_a_hypergradient_does_not_depend_on_the_scale_of_the_loss(key):
    """Oracle: ridge regression in closed form, float32."""
    x = jr.normal(key, (40, 10), jnp.float32)
    y, target = x[:, 0], jnp.ones(10, jnp.float32)

    def loss(w, d, scale):
        mse = jnp.mean((x @ w - y) ** 2) + d * jnp.sum(w**2)
        return 0.5 * scale * mse

    def hypergradient(d, scale, solve):

        w = jnp.linalg.solve(
            x.T @ x / 40 + d * jnp.eye(10, dtype=d.dtype), x.T @ y / 40
        )
        v = solve(ok.hessian(loss, w, d, scale), scale * (w - target))
        return -jax.grad(lambda d: jnp.vdot(v, jax.grad(loss)(w, d, scale)))(d) / scale

    def cg(C, b):
        return ok.invert(C, ok.CG(1e-6)).mv(b)

    d = jnp.float32(0.1)
    by_cg = jax.jit(lambda scale: hypergradient(d, scale, cg))
    base = by_cg(jnp.float32(1))
    exact = hypergradient(
        d, jnp.float32(1), lambda C, b: jnp.linalg.solve(C.as_matrix(), b)
    )
    assert_allclose(base, exact, rtol=1e-5)
    for scale in (1e-9, 1e-6, 1e6, 1e9):
        assert_allclose(by_cg(jnp.float32(scale)), base, rtol=2e-6)


def test_mixed_dtypes_keep_theirs(key):
    """Oracle: the float64 solution; bf16 alone bounds the accuracy."""
    scale = {"a": jnp.arange(1.0, 5.0), "b": jnp.arange(2.0, 5.0)}
    params = {
        "a": jnp.zeros(4, jnp.bfloat16),
        "b": jnp.zeros(3, jnp.float32),
        "c": jnp.zeros((), float),
    }

    def loss(p):
        a, b = p["a"].astype(float), p["b"].astype(float)
        return 0.5 * (scale["a"] @ a**2 + scale["b"] @ b**2 + p["c"] ** 2)

    ones = jax.tree.map(jnp.ones_like, params)
    solution = ok.invert(ok.hessian(loss, params), ok.CG(), damping=1.0).solve(ones)
    assert solution.result == ok.RESULTS.successful
    assert jax.tree.map(jnp.result_type, solution.value) == jax.tree.map(
        jnp.result_type, params
    )
    assert_allclose(solution.value["a"].astype(float), 1 / (1 + scale["a"]), rtol=2**-5)
    assert_allclose(solution.value["b"], 1 / (1 + scale["b"]), rtol=2**-5)


@pytest.mark.x64
def test_a_preconditioner_saves_steps_and_changes_nothing_else(key):
    """Oracle: the dense solution; Nyström removes the leading eigenvalues."""
    values = jnp.concatenate([jnp.linspace(1e3, 1e5, 10), jnp.linspace(0.0, 1.0, 90)])
    q, _ = jnp.linalg.qr(jr.normal(key, (100, 100)))
    A, b = tagged((q * values) @ q.T), jr.normal(key, (100,))
    want = jnp.linalg.solve(A.matrix + 0.1 * jnp.eye(100), b)
    sketch = ok.invert(A, ok.Nystrom(15, key=key), damping=0.1)

    def solve(M):
        return ok.invert(A, ok.CG(1e-9, preconditioner=M), damping=0.1).solve(b)

    plain, fast, full = map(solve, (None, ok.nystrom_preconditioner(sketch), sketch))
    for solution in (plain, fast, full):
        assert solution.result == ok.RESULTS.successful
        assert_allclose(solution.value, want, rtol=1e-6, atol=1e-8)
    steps = [int(s.stats["num_steps"]) for s in (plain, fast, full)]
    assert steps[1] < 0.6 * steps[0]
    assert steps[2] < 0.9 * steps[0]


def test_a_preconditioner_that_depends_on_damping_is_constant_in_derivatives(key):
    """Oracle: JAX's derivative of the dense solution."""
    A, b = spd(key, 12, 100), jr.normal(key, (12,))

    def ours(d):
        C = tagged(A)
        M = ok.nystrom_preconditioner(ok.invert(C, ok.Nystrom(4, key=key), damping=d))
        return ok.invert(
            C, ok.CG(1e-12 if X64 else 1e-5, preconditioner=M), damping=d
        ).mv(b)

    want = jax.jacfwd(lambda d: jnp.linalg.solve(A + d * jnp.eye(12), b))(0.3)
    assert_allclose(jax.jacfwd(ours)(0.3), want, rtol=1e-8, float32=1e-3)
    assert_allclose(jax.jacrev(ours)(0.3), want, rtol=1e-8, float32=1e-3)


@pytest.mark.parametrize("values", [(2.0, -1.0, 1.0), (1.0, 0.0, 1.0)])
def test_negative_and_zero_curvature_are_reported(values):
    """Oracle: the sign of the eigenvalues."""
    C = lx.DiagonalLinearOperator(jnp.array(values))
    solution = ok.invert(C, ok.CG()).solve(jnp.array([1.0, 2.0, 3.0]))
    assert solution.result == ok.RESULTS.indefinite
    assert np.all(np.isfinite(solution.value))
    damped = ok.invert(C, ok.CG(), damping=1.5).solve(jnp.ones(3))
    assert damped.result == ok.RESULTS.successful


def test_a_tolerance_below_rounding_is_reported_not_chased(key):
    """Oracle: float32 cannot reach 1e-6 at condition 1e6, and says so soon."""
    A, b = spd(key, 30, 1e6, jnp.float32), jr.normal(key, (30,), jnp.float32)
    solution = ok.invert(tagged(A), ok.CG(1e-7, max_steps=10_000)).solve(b)
    assert solution.result == ok.RESULTS.inaccurate
    assert solution.stats["num_steps"] < 2000


@pytest.mark.parametrize("condition", [1e3, 1e4])
def test_what_rounding_leaves_will_do_unless_a_tolerance_is_asked_for(key, condition):
    """Oracle: the float64 solution; no further off than a dense float32 factor is."""
    A = spd(key, 60, condition, jnp.float32)
    b = jr.normal(key, (20, 60), jnp.float32)
    exact = np.linalg.solve(np.asarray(A, np.float64), np.asarray(b, np.float64).T).T

    def errors(x):
        off = np.asarray(x, np.float64) - exact
        return np.linalg.norm(off, axis=1) / np.linalg.norm(exact, axis=1)

    default, strict = (ok.invert(tagged(A), m) for m in (ok.CG(), ok.CG(1e-5)))
    solution = jax.vmap(default.solve)(b)
    residual = np.asarray(solution.stats["residual"])
    assert np.all(residual <= np.finfo(np.float32).eps ** 0.5)
    assert np.median(residual) > 1e-5
    dense = jnp.linalg.solve(A, b.T).T
    assert np.median(errors(solution.value)) < 2 * np.median(errors(dense))

    def is_(result, P):
        return jax.vmap(lambda b: P.solve(b).result == result)(b)

    assert np.all(is_(ok.RESULTS.successful, default))
    assert np.any(is_(ok.RESULTS.inaccurate, strict))


@pytest.mark.x64
@pytest.mark.parametrize("method", [ok.CG(), ok.GMRES()], ids=repr)
@pytest.mark.parametrize(
    ("dtypes", "aim"),
    [
        (("float64", "float64"), 1e-10),
        (("float64", "float32"), 1e-5),
        (("float32", "float32"), 1e-5),
    ],
)
def test_the_default_aim_follows_the_narrowest_dtype(key, method, dtypes, aim):
    """Oracle: the true residual, which plain steps lower slowly at κ = 100."""
    values = [jnp.linspace(1.0, 100.0, 150).astype(dtype) for dtype in dtypes]

    def loss(params):
        terms = [0.5 * jnp.vdot(v, p**2) for v, p in zip(values, params, strict=True)]
        return sum(term.astype(float) for term in terms)

    C = ok.hessian(loss, values)
    b = [jr.normal(key, v.shape, v.dtype) for v in values]
    residual = ok.invert(C, method).solve(b).stats["residual"]
    assert aim / 30 < residual <= aim


def test_a_nan_curvature_and_a_bad_preconditioner_are_reported():
    b = jnp.ones(2)
    C = lx.DiagonalLinearOperator(jnp.array([1.0, jnp.nan]))
    assert ok.invert(C, ok.CG()).solve(b).result == ok.RESULTS.nonfinite_operator
    C, M = (lx.DiagonalLinearOperator(jnp.array(d)) for d in ([1.0, 2.0], [1.0, -3.0]))
    solution = ok.invert(C, ok.CG(preconditioner=M)).solve(b)
    assert solution.result == ok.RESULTS.bad_preconditioner


def test_a_nan_among_many_entries_is_reported_as_that_of_the_right_hand_side():
    """Oracle: the result's name; the largest entry alone may not show it."""
    shape = (5000, 10)  # so large that XLA's maximum may leave a NaN out
    C = ok.hessian(lambda x: 0.5 * jnp.sum(x**2), jnp.ones(shape, jnp.float32))
    b = jnp.ones(shape, jnp.float32).at[:, 0].set(jnp.nan)
    solution = ok.invert(C, ok.CG(), damping=1.0).solve(b)
    assert solution.result == ok.RESULTS.nonfinite_input


def test_lanes_of_a_batch_stop_on_their_own(key):
    """Oracle: one by one; a zero, an easy, a hard and a failing right-hand side."""
    A = lx.DiagonalLinearOperator(jnp.array([1.0, 3.0, 9.0, -1.0]))
    P = ok.invert(A, ok.CG())
    eye = jnp.eye(4)
    bs = jnp.stack([0 * eye[0], eye[0], eye[:3].sum(0), eye[3]])
    many = jax.vmap(P.solve)(bs)
    assert many.stats["num_steps"].tolist() == [0, 1, 3, 1]
    for b, value in zip(bs[:3], many.value, strict=False):
        assert_allclose(value, P.solve(b).value, rtol=1e-12)
    want = jax.vmap(lambda b: P.solve(b).result == ok.RESULTS.indefinite)(bs)
    assert want.tolist() == [False, False, False, True]


def test_bad_arguments_raise():
    with pytest.raises(ValueError, match="finite rtol > 0"):
        ok.CG(rtol=0.0)
    with pytest.raises(ValueError, match="max_steps >= 1"):
        ok.CG(max_steps=0)
    C, M = (lx.DiagonalLinearOperator(jnp.ones(n)) for n in (2, 3))
    message = r"`ok.CG` needs the preconditioner's params in .* curvature's, got \(3,\)"
    with pytest.raises(ValueError, match=message):
        ok.invert(C, ok.CG(preconditioner=M))
    with pytest.raises(ValueError, match=r"symmetric_tag"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(2)), jnp.ones(2), ok.CG())
