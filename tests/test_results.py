"""Results are texts; with `EQX_ON_ERROR=nan`, a failed member of a batch is NaN."""

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest
from precision import assert_allclose

import optkit as ok
from optkit import _results


@pytest.fixture(autouse=True)
def nan_on_error(monkeypatch):
    """What the variable does, without a new process. Equinox's checks raise."""
    monkeypatch.setattr(_results, "_ON_ERROR", "nan")
    jax.clear_caches()
    yield
    jax.clear_caches()


def root(solver):
    solve = ok.implicit_root(lambda y, a: y**2 - a, solver=solver)
    return solve(lambda y0, a: jnp.sqrt(a))


A = jnp.array([1.0, 0.0, 4.0])
SLOPES = [0.5, jnp.nan, 0.25]  # 1 / (2 √a)
SOLVERS = [None, ok.GMRES(), lx.LU(), lx.QR()]
NESTED = {
    "vmap of grad": lambda f: jax.vmap(jax.grad(f)),
    "jit of vmap of grad": lambda f: jax.jit(jax.vmap(jax.grad(f))),
    "vmap of jacfwd": lambda f: jax.vmap(jax.jacfwd(f)),
    "diagonal of jacrev of vmap": lambda f: (
        lambda a: jnp.diagonal(jax.jacrev(jax.vmap(f))(a))
    ),
    "vmap of vmap": lambda f: (
        lambda a: jax.vmap(jax.vmap(jax.grad(f)))(a[:, None])[:, 0]
    ),
}


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
def test_derivatives_of_roots(solver, nest):
    """Oracle: 1 / (2 √a), and NaN at a = 0, where the Jacobian is singular."""
    f = root(solver)
    assert_allclose(nest(lambda a: f(a, a))(A), SLOPES, rtol=1e-7)


def test_second_derivatives_of_roots():
    """Oracle: -1 / (4 a^(3/2)), and NaN at a = 0."""
    f = root(None)
    got = jax.vmap(jax.hessian(lambda a: f(a, a)))(A)
    assert_allclose(got, [-0.25, jnp.nan, -1 / 32], rtol=1e-7)


def test_derivatives_of_minima_and_fixed_points():
    """Oracle: closed forms; y = a y + 1 has no solution at a = 1, and a y²/2 - y no
    minimum at a = 0."""
    fixed = ok.implicit_fixed_point(lambda y, a: a * y + 1)(lambda y0, a: 1 / (1 - a))
    a = jnp.array([0.5, 1.0, -1.0])
    got = jax.vmap(jax.grad(lambda a: fixed(a, a)))(a)
    assert_allclose(got, [4.0, jnp.nan, 0.25], rtol=1e-7)
    low = ok.implicit_minimum(lambda y, a: 0.5 * a * y**2 - y)(lambda y0, a: 1 / a)
    got = jax.vmap(jax.grad(lambda a: low(a, a)))(jnp.array([2.0, 0.0, 4.0]))
    assert_allclose(got, [-0.25, jnp.nan, -0.0625], rtol=1e-7)


def test_steps_of_newton_for_a_linear_equation():
    """Oracle: the root of a y = 1."""
    T = ok.optimality.newton(lambda y, a: a * y - 1)
    got = jax.vmap(T)(jnp.zeros(3), jnp.array([1.0, 0.0, 4.0]))
    assert_allclose(got, [1.0, jnp.nan, 0.25], rtol=1e-7)


KEY = jr.key(0)
METHODS = [
    ok.CG(),
    ok.GMRES(),
    ok.Neumann(400),
    ok.Nystrom(2, key=KEY),
    ok.Woodbury(),
    lx.LU(),
    lx.Cholesky(),
]
ROWS = jnp.array([[[1.0, 2.0], [0.5, -1.0]], jnp.full((2, 2), jnp.nan), jnp.eye(2)])
DENSE = np.array([np.linalg.inv(u.T @ u + 0.5 * np.eye(2)) for u in np.asarray(ROWS)])


def inverse_of(rows, method):
    C = lx.TaggedLinearOperator(ok.LowRank(rows), lx.positive_semidefinite_tag)
    C = ok.LowRank(rows) if isinstance(method, ok.Woodbury) else C
    return ok.invert(C, method, damping=0.5)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_products_with_inverses_and_their_derivatives(method):
    """Oracle: NumPy's inverses; the second curvature is NaN."""
    b = jnp.array([1.0, -2.0])
    got = jax.vmap(lambda u: inverse_of(u, method).mv(b))(ROWS)
    assert_allclose(got, DENSE @ np.asarray(b), rtol=1e-6)
    derivative = jax.jacrev(lambda b, u: inverse_of(u, method).mv(b))
    got = jax.jit(jax.vmap(derivative, (None, 0)))(b, ROWS)
    assert_allclose(got, DENSE, rtol=1e-6)


@pytest.mark.parametrize("method", [ok.Woodbury(), ok.Nystrom(2, key=KEY)])
def test_entries_diagonals_and_preconditioners_of_inverses(method):
    """Oracle: NumPy's inverses; the second curvature is NaN."""
    diagonals = jax.vmap(lambda u: inverse_of(u, method).diagonal())(ROWS)
    assert_allclose(diagonals, np.diagonal(DENSE, axis1=1, axis2=2), rtol=1e-6)
    entries = jax.vmap(lambda u: inverse_of(u, method).entry(0, 1))(ROWS)
    assert_allclose(entries, DENSE[:, 0, 1], rtol=1e-6)
    if isinstance(method, ok.Nystrom):
        fast = jax.vmap(
            lambda u: ok.nystrom_preconditioner(inverse_of(u, method)).mv(jnp.ones(2))
        )(ROWS)
        assert np.isfinite(fast).all(axis=1).tolist() == [True, False, True]
    else:
        solved = jax.vmap(lambda u: ok.solve_rows(inverse_of(u, method), jnp.ones(2)))(
            ROWS
        )
        want = np.einsum("kab,kra->kb", DENSE, ROWS)
        assert_allclose(solved, want, rtol=1e-6)


def test_an_undamped_member():
    """Oracle: NumPy's inverse; λ = 0 has none."""
    dampings = jnp.array([0.5, 0.0])
    P = jax.vmap(lambda d: ok.invert(ok.LowRank(ROWS[0]), ok.Woodbury(), damping=d))
    got = jax.vmap(lambda P: P.diagonal())(P(dampings))
    assert_allclose(got, [np.diagonal(DENSE[0]), [np.nan, np.nan]], rtol=1e-6)


def test_pruning():
    """Oracle: one by one; the second weights are NaN."""
    P = inverse_of(ROWS[0], ok.Woodbury())
    weights = jnp.array([[1.0, 0.1], [jnp.nan, 1.0], [0.2, 3.0]])
    got = jax.vmap(lambda w: ok.obs_prune(w, P, sparsity=0.5).params)(weights)
    for i in (0, 2):
        want = ok.obs_prune(weights[i], P, sparsity=0.5).params
        assert_allclose(got[i], want, rtol=1e-7)


def test_bilevel_hypergradients():
    """Oracle: y* = x, so Φ = x²/2 has slope x; the second lower problem is flat."""

    def lower(x, y, curvature):
        return 0.5 * curvature * (y - x) ** 2

    def upper(x, y, curvature):
        return 0.5 * y**2

    for method in (
        ok.bilevel.Implicit(ok.CG()),
        ok.bilevel.Implicit(lx.LU()),
        ok.bilevel.ImplicitProjected(lambda y: y, 0.5),
    ):
        gradient = ok.bilevel.hypergradient(upper, lower, method=method)
        value, info = jax.vmap(lambda c, f=gradient: f(jnp.ones(()), jnp.ones(()), c))(
            A
        )
        is_fine = info.result == ok.RESULTS.successful
        assert is_fine.tolist() == [True, False, True]
        assert_allclose(value[::2], 1.0, rtol=1e-7)


def history():
    """Twenty steps, of which step 7 fails."""
    solver = ok.bilevel.soba(
        lambda x, y, scale: scale * jnp.sum((y - 1) ** 2 + x**2),
        lambda x, y, scale: 0.5 * jnp.sum((y - x) ** 2),
        outer=optax.sgd(0.1),
        inner=optax.sgd(0.5),
    )
    state = solver.init(jnp.zeros(2), jnp.zeros(2))
    return ok.run(solver, state, lambda k: jnp.where(k == 7, jnp.nan, 1.0), 20)[1]


def test_results_of_many_steps_can_be_indexed_and_printed():
    """Oracle: the item of the step that failed, and its text."""
    result = history().result
    failed, fine = result[7], result[6]
    assert failed == ok.RESULTS.nonfinite_gradient
    assert (
        str(failed) == ok.RESULTS[failed] == ok.RESULTS[ok.RESULTS.nonfinite_gradient]
    )
    assert fine == ok.RESULTS.successful
    assert str(fine) == "successful"
    assert (result[5:9] != ok.RESULTS.successful).tolist() == [
        False,
        False,
        True,
        False,
    ]
    first, second = str(result).split("\n")
    assert first == "19 of 20: successful"
    assert second == f"1 of 20: {failed}"
    assert repr(fine) == "ok.RESULTS<successful>"


def test_results_of_a_batch_and_under_transformations():
    """Oracle: the item of each member, through vmap, cond, scan and jit."""
    P = ok.invert(lx.DiagonalLinearOperator(jnp.array([1.0, -2.0])), ok.CG())
    results = jax.jit(jax.vmap(lambda b: P.solve(b).result))(jnp.eye(2))
    assert str(results[1]) == ok.RESULTS[ok.RESULTS.indefinite]
    assert results[0] == ok.RESULTS.successful

    def step(carry, k):
        item = ok.RESULTS.where(k == 1, ok.RESULTS.stalled, ok.RESULTS.successful)
        both = jax.lax.cond(k == 1, lambda: item, lambda: ok.RESULTS.successful)
        return carry, both

    _, stacked = jax.lax.scan(step, 0, jnp.arange(3))
    assert stacked[1] == ok.RESULTS.stalled
    promoted = ok.RESULTS.promote(lx.RESULTS.singular)
    assert str(promoted) == lx.RESULTS[lx.RESULTS.singular]
    assert isinstance(promoted, ok.RESULTS)


def test_objects_fit_on_a_screen_and_show_shapes():
    """Oracle: the number of lines, and some of them."""
    big = {f"layer{i}": jnp.ones((10, 10)) for i in range(100)}
    C = ok.hessian(lambda p: sum(jnp.sum(a**2) for a in p.values()), big)
    for P in (ok.invert(C, ok.CG(), damping=1.0), C, C + C):
        assert len(repr(P).split("\n")) <= 27
        assert "[10,10]" in repr(P)
    P = ok.invert(ok.Damped(ok.LowRank(jnp.ones((2, 3))), 1.0), lx.LU())
    assert "lineax='LU()'" in repr(P)
    assert "PyTreeDef" not in repr(P)
    info = jax.tree.map(lambda a: a[0], history())
    assert "  result              successful\n" in repr(info)
    assert "[20]" in repr(history())
    assert "Array(" not in repr(info) + repr(history())
