"""`invert`, and every method on every operator it fits."""

import functools

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from jax.flatten_util import ravel_pytree
from precision import X64, assert_allclose
from problems import linear_data, linear_example_loss, linear_loss, linear_params

import optkit as ok
from optkit._vector import from_vector, to_vector

KEY = jr.key(7)
DATA = linear_data(jr.key(1))
PARAMS = linear_params(jr.key(2))
PSD = lx.positive_semidefinite_tag


def hessian(params):
    return lx.TaggedLinearOperator(ok.hessian(linear_loss, params, *DATA), PSD)


def gauss_newton(params):
    inputs, labels = DATA
    head = ok.SoftmaxCrossEntropy()
    return ok.gauss_newton(
        lambda p, x: x @ p["w"] + p["b"], head, params, inputs, labels
    )


def fisher(params):
    return ok.empirical_fisher(linear_example_loss, params, DATA)


def blocks(params):
    return fisher(params).block_diagonal(4)


def small_blocks(params):
    return fisher(params).block_diagonal(2)


def total(params):
    C = ok.Damped(fisher(params), 0.1) + 2.0 * hessian(params)
    return lx.TaggedLinearOperator(C, PSD)


def matrix(params):
    w = jnp.concatenate([params["w"], params["b"][None]])
    return lx.MatrixLinearOperator(w @ w.T + jnp.diag(w[:, 0] ** 2), PSD)


def sketched_cg(operator):
    sketch = ok.invert(operator, ok.Nystrom(3, key=KEY), damping=0.5)
    return ok.CG(rtol=LEAST, preconditioner=ok.nystrom_preconditioner(sketch))


OPERATORS = [hessian, gauss_newton, fisher, blocks, total, matrix]
LOW_RANK = [fisher, blocks, small_blocks]
DIRECT, ITERATIVE = (1e-10, 1e-9) if X64 else (1e-4, 1e-4)
LEAST = 1e-12 if X64 else 1e-6  # rtol of a solve
OURS = {
    "CG": (lambda C: ok.CG(rtol=LEAST), ITERATIVE),
    "CG sketched": (sketched_cg, ITERATIVE),
    "Neumann": (lambda C: ok.Neumann(400), ITERATIVE),
    "Nystrom": (lambda C: ok.Nystrom(C.in_size(), key=KEY), DIRECT),
}
CHOLESKY = (lambda C: lx.Cholesky(), DIRECT)
LINEAX = {
    "LU": (lambda C: lx.LU(), DIRECT),
    "SVD": (lambda C: lx.SVD(), DIRECT),
    "lx.CG": (lambda C: lx.CG(rtol=LEAST, atol=LEAST), ITERATIVE),
    "GMRES": (lambda C: lx.GMRES(rtol=LEAST, atol=LEAST), ITERATIVE),
}
WOODBURY = (lambda C: ok.Woodbury(), DIRECT)
TABLE = (
    [(op, name, *row) for op in OPERATORS for name, row in OURS.items()]
    + [(op, "Woodbury", *WOODBURY) for op in LOW_RANK]
    + [(op, "Cholesky", *CHOLESKY) for op in OPERATORS]
    + [(op, name, *row) for op in (fisher, matrix) for name, row in LINEAX.items()]
)
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def inverse_by(make, method):
    """P b as a function of params, λ and b."""

    def solve(params, damping, b):
        C = make(params)
        P = ok.invert(C, method(C), damping=damping)
        return to_vector(P.mv(from_vector(b, C.in_structure())))

    return solve


def dense_inverse(make):
    """The same with a dense matrix."""

    def solve(params, damping, b):
        matrix = make(params).as_matrix() + damping * jnp.eye(b.size)
        return jnp.linalg.solve(matrix, b)

    return solve


def uses(solve, b):
    """What a product is asked for: values in a batch, derivatives both ways."""
    bs, dampings = jnp.stack([b, jnp.cos(b)]), jnp.array([0.3, 2.0])
    point = (PARAMS, jnp.asarray(0.5), b)
    tangent = jax.tree.map(lambda x: jr.normal(jr.key(3), x.shape), point)

    @functools.partial(jax.jit, compiler_options=FAST)
    def compute():
        return {
            "batch": jax.vmap(solve, (None, 0, 0))(PARAMS, dampings, bs),
            "jvp": jax.jvp(solve, point, tangent),
            "vjp": jax.vjp(solve, *point)[1](jnp.cos(b)),
        }

    return compute()


@functools.cache
def dense_uses(make):
    return uses(dense_inverse(make), right_hand_side(make))


def right_hand_side(make):
    return jr.normal(jr.key(4), (make(PARAMS).in_size(),))


def assert_equal(got, want, tolerance):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_allclose(x, y, rtol=tolerance, atol=tolerance * np.abs(y).max())


@pytest.mark.parametrize(
    ("make", "method", "tolerance"),
    [(make, method, tolerance) for make, _, method, tolerance in TABLE],
    ids=[f"{make.__name__}-{name}" for make, name, _, _ in TABLE],
)
def test_every_method_on_every_operator_equals_the_dense_inverse(
    make, method, tolerance
):
    """Oracle: `jnp.linalg.solve`: values, vmap, jvp and vjp in params, λ and b; jit."""
    got = uses(inverse_by(make, method), right_hand_side(make))
    assert_equal(got, dense_uses(make), tolerance)


def vector_like(operator):
    return jax.tree.map(
        lambda s: jr.normal(jr.key(4), s.shape, s.dtype), operator.in_structure()
    )


def all_methods(C):
    yield ok.Woodbury()
    yield lx.Cholesky()
    for make, _ in (OURS | LINEAX).values():
        yield make(C)


def test_an_inverse_is_a_symmetric_operator_again():
    """Oracle: the dense inverse."""
    C = fisher(PARAMS)
    P = ok.invert(C, ok.Woodbury(), damping=0.5)
    want = np.linalg.inv(C.as_matrix() + 0.5 * np.eye(8))
    assert lx.is_symmetric(P)
    assert lx.is_positive_semidefinite(P)
    assert_allclose(P.as_matrix(), want, rtol=1e-10)
    Q = ok.invert(P, ok.CG(rtol=LEAST), damping=1.0)
    assert_allclose(
        Q.as_matrix(), np.linalg.inv(want + np.eye(8)), rtol=1e-9, atol=1e-10
    )


@pytest.mark.parametrize("solver", list(all_methods(fisher(PARAMS))), ids=repr)
def test_an_inverse_crosses_plain_jit_and_compiles_once(solver):
    """Oracle: identity, and the number of traces."""
    C = fisher(PARAMS)
    b = vector_like(C)
    traces = []

    @jax.jit
    def apply(P, b):
        traces.append(1)
        return P.mv(b)

    P = jax.jit(lambda C: ok.invert(C, solver, damping=0.5))(C)
    want = ok.invert(C, solver, damping=0.5).mv(b)
    for _ in range(2):
        jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-9), apply(P, b), want)
    assert len(traces) == 1


def test_a_batch_of_dampings_makes_a_batch_of_inverses():
    """Oracle: one by one."""
    C, dampings = fisher(PARAMS), jnp.array([0.1, 1.0])
    b = vector_like(C)
    for solver in (ok.Woodbury(), ok.CG(), lx.Cholesky()):
        Ps = jax.vmap(lambda d, s=solver: ok.invert(C, s, damping=d))(dampings)
        got = jax.vmap(lambda P: P.mv(b))(Ps)
        for i, d in enumerate(dampings):
            want = ok.invert(C, solver, damping=d).mv(b)
            jax.tree.map(
                lambda x, y, i=i: assert_allclose(x[i], y, rtol=1e-9), got, want
            )


def test_second_derivatives():
    """Oracle: the dense inverse."""
    C = fisher(PARAMS)
    b = vector_like(C)
    flat = ravel_pytree(b)[0]

    def ours(d, solver):
        y = ok.invert(C, solver, damping=d).mv(b)
        return jnp.vdot(ravel_pytree(y)[0], flat)

    def dense(d):
        return flat @ jnp.linalg.solve(C.as_matrix() + d * jnp.eye(8), flat)

    want = jax.hessian(dense)(0.5)
    for nested in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        second = jax.jit(
            nested(lambda d: ours(d, ok.Woodbury())), compiler_options=FAST
        )
        assert_allclose(second(0.5), want, rtol=1e-9)


@pytest.mark.parametrize(
    "solver", [ok.Woodbury(), ok.Woodbury(True), ok.Nystrom(8, key=KEY), ok.CG(LEAST)]
)
@pytest.mark.parametrize("make", [fisher, blocks, small_blocks])
def test_entries_equal_the_dense_inverse(make, solver):
    """Oracle: the dense inverse; coordinates count as in `as_matrix`."""
    C = make(PARAMS)
    P = ok.invert(C, solver, damping=0.5)
    want = np.linalg.inv(C.as_matrix() + 0.5 * np.eye(8))
    a, b = np.arange(8)[:, None], np.arange(8)[None]
    assert_allclose(P.entry(a, b), want, rtol=1e-8, atol=1e-11)
    assert_allclose(jax.jit(lambda P, a: P.entry(a, 5))(P, 3), want[3, 5], atol=1e-11)
    assert P.entry(1, 2).shape == ()


@pytest.mark.parametrize("make", [fisher, blocks, small_blocks])
def test_entries_and_diagonal_have_derivatives(make):
    """Oracle: JAX's derivative of the dense inverse, with equal eigenvalues too."""

    def ours(params, d):
        P = ok.invert(make(params), ok.Woodbury(), damping=d)
        return ravel_pytree(P.diagonal())[0], P.entry(2, jnp.arange(3))

    def dense(params, d):
        M = jnp.linalg.inv(make(params).as_matrix() + d * jnp.eye(8))
        return jnp.diagonal(M), M[2, :3]

    @functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
    def derivatives(f):
        point = (PARAMS, jnp.asarray(0.5))
        out, pull = jax.vjp(f, *point)
        return jax.jvp(f, point, point), pull(jax.tree.map(jnp.cos, out))

    assert_equal(derivatives(ours), derivatives(dense), ITERATIVE)


def test_a_method_of_ours_works_in_lineax_and_optimistix():
    """Oracle: the closed form of a ridge regression."""
    x, y = jr.normal(KEY, (9, 4)), jr.normal(jr.key(8), (9,))

    def gradient(w, d):
        return {"w": x.T @ (x @ w["w"] - y) + d * w["w"]}

    def fit(d):
        root = optx.root_find(
            gradient,
            optx.Newton(rtol=100 * LEAST, atol=100 * LEAST),
            {"w": jnp.zeros(4)},
            args=d,
            adjoint=optx.ImplicitAdjoint(linear_solver=ok.CG(rtol=LEAST)),
            tags=frozenset({lx.positive_semidefinite_tag}),
        )
        return root.value["w"]

    def exact(d):
        return jnp.linalg.solve(x.T @ x + d * jnp.eye(4), x.T @ y)

    for derivative in (jax.jacfwd, jax.jacrev):
        got, want = derivative(fit)(0.3), derivative(exact)(0.3)
        assert_allclose(got, want, rtol=1e-9)
    A = lx.MatrixLinearOperator(x.T @ x, lx.positive_semidefinite_tag)
    solution = lx.linear_solve(A, x.T @ y, ok.CG(rtol=LEAST))
    assert_allclose(solution.value, exact(0.0), rtol=1e-9)


def test_a_failed_solve_reports_in_solve_and_raises_in_mv():
    """Oracle: an operator that is not positive definite."""
    C = lx.DiagonalLinearOperator(jnp.array([1.0, -1.0]))
    P = ok.invert(C, ok.CG(), damping=0.5)
    solution = jax.jit(lambda P, b: P.solve(b))(P, jnp.ones(2))
    assert solution.result == ok.RESULTS.indefinite
    assert "Raise `damping`" in ok.RESULTS[solution.result]
    with pytest.raises(RuntimeError, match="not positive definite"):
        P.mv(jnp.ones(2))
    with pytest.raises(RuntimeError, match="breakdown"):
        lx.linear_solve(C, jnp.ones(2), ok.CG())


@pytest.mark.parametrize("solver", list(all_methods(fisher(PARAMS))), ids=repr)
def test_a_zero_right_hand_side_gives_zero_and_a_nan_one_is_reported(solver):
    C = fisher(PARAMS)
    P = ok.invert(C, solver, damping=0.5)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    solution = P.solve(zero)
    assert solution.result == ok.RESULTS.successful
    for x in jax.tree.leaves(solution.value):
        assert not np.any(x)
    nan = jax.tree.map(lambda x: x.at[0].set(jnp.nan), zero)
    assert P.solve(nan).result == ok.RESULTS.nonfinite_input
    with pytest.raises(RuntimeError, match="non-finite"):
        P.mv(nan)


@pytest.mark.parametrize("solver", [lx.Cholesky(), lx.CG(LEAST, LEAST)], ids=repr)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_lineaxs_solvers_see_b_at_norm_one(solver, size):
    """Oracle: the solution for b, times its size. Their atol would call 1e-30 zero."""
    C, b = matrix(PARAMS), jnp.arange(1.0, 5.0)
    P = ok.invert(C, solver, damping=0.5)
    solution = jax.jit(lambda P, b: P.solve(b))(P, size * b)
    assert solution.result == ok.RESULTS.successful
    assert solution.stats["residual"] <= 100 * LEAST
    want = np.linalg.solve(C.as_matrix() + 0.5 * np.eye(4), b)
    assert_allclose(solution.value / size, want, rtol=1e-9)


def test_an_inexact_solve_by_a_lineax_solver_is_reported():
    """Oracle: a solver that returns half the solution, at any size of b."""

    class Half(lx.AbstractLinearSolver):
        def init(self, operator, options):
            return operator.as_matrix()

        def compute(self, state, vector, options):
            x = 0.5 * jnp.linalg.solve(state, vector)
            return x, lx.RESULTS.successful, {}

        def transpose(self, state, options):
            return state.T, options

        def conj(self, state, options):
            return state, options

        def assume_full_rank(self):
            return True

    P = ok.invert(matrix(PARAMS), Half(), damping=0.5)
    for size in (1e-30, 1.0):
        solution = jax.jit(lambda P, b: P.solve(b))(P, jnp.full(4, size))
        assert solution.result == ok.RESULTS.inexact_solve
        assert_allclose(solution.stats["residual"], 0.5, rtol=1e-6)
    with pytest.raises(RuntimeError, match="missed its tolerance"):
        P.mv(jnp.ones(4))


def test_a_singular_matrix_is_reported_by_a_lineax_solver():
    """Oracle: the result's name; LU divides by zero."""
    C = lx.MatrixLinearOperator(jnp.ones((2, 2)), lx.symmetric_tag)
    solution = ok.invert(C, lx.LU()).solve(jnp.array([1.0, 2.0]))
    assert solution.result != ok.RESULTS.successful


@pytest.mark.parametrize("transpose", [False, True])
def test_neumann_of_an_operator_that_is_not_symmetric_is_the_partial_sum(transpose):
    """Oracle: the dense partial sum, α Σ_{j<K} (I - αA)ʲ b."""
    alpha, num_terms = 0.4, 7
    A, b = np.array([[2.0, 1.0], [-0.5, 1.5]]), np.array([1.0, -3.0])
    operator = lx.MatrixLinearOperator(jnp.asarray(A))
    method = ok.Neumann(num_terms, alpha)
    state, options = method.init(operator, {}), {}
    if transpose:
        A, (state, options) = A.T, method.transpose(state, options)
    x, result, stats = jax.jit(lambda b: method.compute(state, b, options))(b)
    terms = [np.linalg.matrix_power(np.eye(2) - alpha * A, j) for j in range(num_terms)]
    assert_allclose(x, alpha * sum(terms) @ b, rtol=1e-12)
    assert result == lx.RESULTS.successful
    assert np.isnan(stats["residual"])


@pytest.mark.parametrize(
    ("method", "is_needed"),
    [
        (ok.CG(), True),
        (ok.Nystrom(1, key=KEY), True),
        (ok.Woodbury(), True),
        (ok.GMRES(), False),
        (ok.Neumann(3, 0.1), False),
        (ok.OneStep(), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_methods_for_symmetric_operators_refuse_others(method, is_needed):
    """Oracle: the message, or the solution of a triangular system."""
    assert method.needs_symmetric is is_needed
    A = lx.MatrixLinearOperator(jnp.array([[1.0, 2.0], [0.0, 1.0]]))
    name = type(method).__name__
    if is_needed:
        match = f"`ok.{name}` needs an operator known to be symmetric"
        with pytest.raises(ValueError, match=match):
            lx.linear_solve(A, jnp.ones(2), method)
    else:
        lx.linear_solve(A, jnp.ones(2), method)


def test_bad_calls_say_what_to_do():
    C = fisher(PARAMS)
    with pytest.raises(ValueError, match="damping >= 0"):
        ok.invert(C, ok.CG(), damping=-1.0)
    with pytest.raises(ValueError, match="known to be symmetric, got `MatrixLinear"):
        ok.invert(lx.MatrixLinearOperator(jnp.eye(2) + jnp.eye(2, k=1)), ok.CG())
    refused, method = (
        r"`ok.Nystrom` takes the options \[\], .*'y0'",
        ok.Nystrom(1, key=KEY),
    )
    with pytest.raises(ValueError, match=refused):
        lx.linear_solve(matrix(PARAMS), jnp.ones(4), method, options={"y0": 1})
    P = ok.invert(C, ok.CG(), damping=1.0)
    with pytest.raises(ValueError, match=r"`ok.invert\(...\).mv` .* structure"):
        P.mv({"w": PARAMS["w"]})
    with pytest.raises(ValueError, match=r"`ok.invert\(...\).solve` .* structure"):
        P.solve({"w": PARAMS["w"]})
    with pytest.raises(
        TypeError, match=r"`ok.invert\(...\).mv` needs vector in the dtype .*cast_like"
    ):
        P.mv(jax.tree.map(lambda x: jnp.zeros(x.shape, int), PARAMS))
    with pytest.raises(IndexError, match="0 <= b < 8"):
        P.entry(0, 8)
    with pytest.raises(TypeError, match="integers for a"):
        P.entry(0.0, 1)
    with pytest.raises(NotImplementedError, match="hutchinson_diag"):
        P.diagonal()
    assert np.isnan(jax.jit(lambda P, b: P.entry(0, b))(P, 8))


def test_lineax_least_squares_solvers_invert_singular_curvatures():
    """Oracle: NumPy's pseudo-inverse; b is not in the range."""
    C = lx.MatrixLinearOperator(jnp.diag(jnp.array([2.0, 0.0])), lx.symmetric_tag)
    solution = ok.invert(C, lx.SVD()).solve(jnp.array([2.0, 1.0]))
    assert solution.result == ok.RESULTS.successful
    assert_allclose(solution.value, [1.0, 0.0], atol=1e-12)


@pytest.mark.parametrize("method", [ok.CG(), ok.GMRES()], ids=["cg", "gmres"])
def test_the_default_number_of_steps_fits_an_integer(method):
    """Oracle: the shape; ten times 3e8 parameters exceeds int32."""
    params = jax.ShapeDtypeStruct((300_000_000,), jnp.float32)

    def solve(params):
        C = ok.hessian(lambda x: jnp.sum(x**2), params)
        return ok.invert(C, method, damping=1.0).mv(params)

    with jax.enable_x64(False):
        assert jax.eval_shape(solve, params).shape == params.shape


ON_DEVICES = {
    "CG": ok.CG(LEAST),
    "GMRES": ok.GMRES(LEAST),
    "Neumann": ok.Neumann(400),
    "Nystrom": ok.Nystrom(4, key=KEY),
    "LU": lx.LU(),
}


def logistic(w, x):
    return jnp.mean(jnp.log1p(jnp.exp(-jnp.sum(x * w, axis=-1))))


def logistic_inverse(w, x, b):
    H = ok.hessian(logistic, w, x).as_matrix()
    return jnp.linalg.solve(H + 0.5 * jnp.eye(w.size), b)


def data_for(n):
    return jnp.arange(1.0, n + 1) / 10, jr.normal(KEY, (16, n)), jr.normal(KEY, (n,))


@pytest.mark.parametrize("method", ON_DEVICES.values(), ids=ON_DEVICES)
@pytest.mark.parametrize("is_shared", [False, True])
def test_inverses_inside_shard_map(method, is_shared):
    """Oracle: the dense inverse, of each device's data or of all data (`pmean`)."""
    w, x, b = data_for(4)
    spec = jax.sharding.PartitionSpec

    def loss(w, x):
        own = logistic(w, x)
        return jax.lax.pmean(own, "d") if is_shared else own

    def solve(w, x, b):
        return ok.invert(ok.hessian(loss, w, x), method, damping=0.5).mv(b)

    mapped = jax.shard_map(
        solve,
        mesh=jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(spec(), spec("d"), spec()),
        out_specs=spec() if is_shared else spec("d"),
        check_vma=is_shared,
    )
    parts = [x] if is_shared else jnp.split(x, 8)
    want = jnp.concatenate([logistic_inverse(w, part, b) for part in parts])
    assert_allclose(jax.jit(mapped)(w, x, b), want, rtol=1e-8, float32=1e-4)


@pytest.mark.parametrize("axis", [None, "d"], ids=["replicated", "sharded"])
@pytest.mark.parametrize("method", ON_DEVICES.values(), ids=ON_DEVICES)
def test_inverses_on_an_explicit_mesh(method, axis):
    """Oracle: the dense inverse; the result is sharded like the vector."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    if axis and isinstance(method, lx.LU):
        pytest.skip("Lineax's factorisations do not take explicitly sharded vectors")
    w, x, b = data_for(8)
    method = ok.Nystrom(8, key=KEY) if isinstance(method, ok.Nystrom) else method
    want = logistic_inverse(w, x, b)
    sharding = jax.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))

    def solve(w, x, b):
        return ok.invert(ok.hessian(logistic, w, x), method, damping=0.5).mv(b)

    with jax.set_mesh(mesh):
        w, b = jax.device_put((w, b), sharding)
        x = jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, axis)))
        got = jax.jit(solve)(w, x, b)
    assert got.sharding.is_equivalent_to(sharding, 1)
    assert_allclose(jax.device_get(got), want, rtol=1e-8, float32=1e-4)
