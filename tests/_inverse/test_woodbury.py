"""Woodbury's identity: M-FAC's static algorithm, its precision and its memory."""

from functools import partial

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import oracles
import pytest
from jax.flatten_util import ravel_pytree
from precision import assert_allclose

import optkit as ok


def gradients(rng, m=12, d=50):
    return rng.normal(size=(m, d))


def split(rows):
    """The same rows as a pytree."""
    r = rows.shape[0]
    return {
        "a": jnp.asarray(rows[:, :6]).reshape(r, 2, 3),
        "b": jnp.asarray(rows[:, 6:]),
    }


def fisher(G):
    return ok.LowRank(split(G / np.sqrt(len(G))))


def test_it_is_the_static_algorithm_of_mfac(rng):
    """Oracle: NumPy transcription of the paper's recursion, and the dense inverse."""
    G, x, damping = gradients(rng), rng.normal(size=50), 1e-2
    v, q = oracles.mfac_static(G, damping)
    P = ok.invert(fisher(G), ok.Woodbury(), damping=damping)
    got = ravel_pytree(P.mv(jax.tree.map(lambda u: u[0], split(x[None]))))[0]
    assert_allclose(got, oracles.mfac_product(v, q, damping, x), rtol=1e-10, atol=1e-10)
    diagonal = ravel_pytree(P.diagonal())[0]
    assert_allclose(diagonal, oracles.mfac_diagonal(v, q, damping), rtol=1e-10)
    for a, b in [(0, 0), (3, 40), (40, 3), (49, 49)]:
        entry = oracles.mfac_entry(v, q, damping, a, b)
        assert_allclose(P.entry(a, b), entry, rtol=1e-9, atol=1e-10)
    dense = np.linalg.inv(damping * np.eye(50) + G.T @ G / 12)
    assert_allclose(P.as_matrix(), dense, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("size", [4, 20])
def test_blocks_are_the_static_algorithm_of_mfac_in_each_block(rng, size):
    """Oracle: the recursion on the columns of each block; 4 < m = 12 < 20."""
    G, damping = gradients(rng), 1e-2
    P = ok.invert(
        ok.BlockLowRank(jnp.asarray(G / np.sqrt(12)), size),
        ok.Woodbury(),
        damping=damping,
    )
    x = rng.normal(size=50)
    want, diagonal = [], []
    for start in range(0, 50, size):
        block = slice(start, start + size)
        v, q = oracles.mfac_static(G[:, block], damping)
        want.append(oracles.mfac_product(v, q, damping, x[block]))
        diagonal.append(oracles.mfac_diagonal(v, q, damping))
    assert_allclose(P.mv(jnp.asarray(x)), np.concatenate(want), rtol=1e-9)
    assert_allclose(P.diagonal(), np.concatenate(diagonal), rtol=1e-9)
    assert P.entry(0, size) == 0


def test_one_gradient_in_an_empty_window(rng):
    """Oracle: closed form g / (λ + ‖g‖²/m); empty rows are zero."""
    G = np.zeros((8, 20))
    G[3] = rng.normal(size=20)
    P = ok.invert(ok.LowRank(jnp.asarray(G / np.sqrt(8))), ok.Woodbury(), damping=0.1)
    want = G[3] / (0.1 + G[3] @ G[3] / 8)
    assert_allclose(P.mv(jnp.asarray(G[3])), want, rtol=1e-10)
    c = jnp.zeros(8).at[3].set(np.sqrt(8))
    assert_allclose(ok.solve_rows(P, c), want, rtol=1e-12)


def test_gradients_times_s_and_damping_times_s_squared(rng):
    """Oracle: identity, s F^-1 g stays."""
    G = gradients(rng)
    base = ok.invert(fisher(G), ok.Woodbury(), damping=1e-2)
    g = jax.tree.map(lambda u: u[0], split(G))
    for s in (1e-6, 1e6):
        P = ok.invert(fisher(s * G), ok.Woodbury(), damping=1e-2 * s**2)
        want = base.mv(g)
        got = jax.tree.map(lambda x, s=s: s**2 * x, P.mv(g))
        for x, y in zip(*map(jax.tree.leaves, (got, want)), strict=True):
            assert_allclose(x, y, rtol=1e-8, float32=1e-3)


def test_many_columns_are_taken_in_chunks(rng):
    """Oracle: NumPy; more columns than one chunk, and no multiple of it."""
    rows = rng.normal(size=(3, 5001))
    C = ok.LowRank({"a": jnp.asarray(rows[:, :5000]), "b": jnp.asarray(rows[:, 5000:])})
    for solver in (ok.Woodbury(), ok.Woodbury(store_whitened=True)):
        P = ok.invert(C, solver, damping=0.5)
        K = 0.5 * np.eye(3) + rows @ rows.T
        inverse = np.linalg.solve(K, rows)
        want = (1 - np.sum(rows * inverse, axis=0)) / 0.5
        assert_allclose(ravel_pytree(P.diagonal())[0], want, rtol=1e-10)
        entry = -rows[:, 4097] @ inverse[:, 5000] / 0.5
        assert_allclose(P.entry(4097, 5000), entry, rtol=1e-9)


@pytest.mark.parametrize(
    ("r", "n", "size"), [(4, 5000, 3), (4, 4096, 4), (9, 6007, 50), (3, 9000, 3000)]
)
def test_many_blocks_are_taken_in_steps(rng, r, n, size):
    """Oracle: NumPy, block by block; cut blocks, with and without a stride."""
    rows, x = rng.normal(size=(r, n)), rng.normal(size=n)
    C = ok.BlockLowRank(jnp.asarray(rows), size)
    P = ok.invert(C, ok.Woodbury(), damping=0.5)
    product, solution, diagonal = C.mv(jnp.asarray(x)), P.mv(jnp.asarray(x)), []
    for start in range(0, n, size):
        b = slice(start, start + size)
        block = rows[:, b].T @ rows[:, b]
        inverse = np.linalg.inv(block + 0.5 * np.eye(len(block)))
        assert_allclose(product[b], block @ x[b], rtol=1e-9, atol=1e-10)
        assert_allclose(solution[b], inverse @ x[b], rtol=1e-9, atol=1e-9, float32=1e-4)
        diagonal.append(np.diag(inverse))
    assert_allclose(P.diagonal(), np.concatenate(diagonal), rtol=1e-9, float32=1e-4)
    assert_allclose(P.entry(n - 1, n - 1), inverse[-1, -1], rtol=1e-9, float32=1e-4)


def temporaries(use, *inputs):
    """The compiler's own account of temporary bytes, as float32 users have it."""
    with jax.enable_x64(False):
        return (
            jax.jit(use).lower(*inputs).compile().memory_analysis().temp_size_in_bytes
        )


@pytest.mark.parametrize("size", [64, 100, 128, 256, 512])
def test_blocks_take_a_fifth_of_the_rows_besides_their_factors(size):
    """Oracle: the compiler's own account; 128 to 512 do not divide 40,000."""
    r, n = 256, 40_000
    rows, x = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((r, n), (n,)))

    def invert(u):
        return ok.invert(ok.BlockLowRank(u, size), ok.Woodbury(), damping=0.1)

    with jax.enable_x64(False):
        P = jax.eval_shape(invert, rows)
    for use, *inputs in (
        (invert, rows),
        (lambda P, x: P.solve(x).value, P, x),
        (lambda P: P.diagonal(), P),
        (lambda P: P.entry(3, 5), P),
        (lambda P, x: P.operator.mv(x), P, x),
    ):
        assert temporaries(use, *inputs) < 0.2 * r * n * 4


@pytest.mark.parametrize("of", [ok.LowRank, lambda u: ok.BlockLowRank(u, 100)])
def test_bfloat16_rows_are_not_copied_in_float32(of):
    """Oracle: the compiler's own account; a copy would be twice the rows."""
    r, n = 256, 40_000
    rows = jax.ShapeDtypeStruct((r, n), jnp.bfloat16)
    with jax.enable_x64(False):
        invert = partial(ok.invert, solver=ok.Woodbury(), damping=0.1)
        P = jax.eval_shape(lambda u: invert(of(u)), rows)
    for use, inputs in (
        (lambda u: invert(of(u)).factor, rows),
        (lambda P: P.diagonal(), P),
    ):
        assert temporaries(use, inputs) < 0.4 * r * n * 2


def test_on_devices_blocks_stay_where_they_are(rng):
    """Oracle: the compiled program; 8 virtual devices, whole blocks on each."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "x")
    rows = jnp.asarray(rng.normal(size=(4, 8 * 640)))
    placed = jax.device_put(rows, jax.sharding.NamedSharding(mesh, spec))
    C, D = (ok.BlockLowRank(u, 16) for u in (placed, rows))
    product = jax.jit(lambda C: C.mv(C.rows[0])).lower(C).compile()
    assert "all-gather" not in product.as_text()
    assert_allclose(product(C), D.mv(rows[0]), rtol=1e-12)


def test_it_takes_a_fifth_more_memory_than_the_rows():
    """Oracle: the compiler's own account, at a hundredth of a million columns."""
    r, n = 256, 40_000
    rows = jax.ShapeDtypeStruct((r, n), jnp.float32)
    x = jax.ShapeDtypeStruct((n,), jnp.float32)

    def whole(rows, x):
        P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=1e-3)
        return P.solve(x).value, P.diagonal()

    memory = jax.jit(whole).lower(rows, x).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.2 * r * n * 4


def test_sharded_rows_are_not_gathered(rng):
    """Oracle: the same on one device; 8 virtual devices."""
    rows = rng.normal(size=(4, 64))
    mesh = jax.make_mesh((8,), ("x",))
    spec = jax.sharding.PartitionSpec(None, "x")
    sharded = jax.device_put(rows, jax.sharding.NamedSharding(mesh, spec))
    x = jnp.asarray(rng.normal(size=64))
    P, Q = (
        ok.invert(ok.LowRank(u), ok.Woodbury(), damping=0.1)
        for u in (sharded, jnp.asarray(rows))
    )
    x_sharded = jax.device_put(
        x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    )
    assert_allclose(P.mv(x_sharded), Q.mv(x), rtol=1e-9)


def test_failures_are_reported(rng):
    rows = jnp.asarray(rng.normal(size=(3, 5)))
    for C in (ok.LowRank(rows), ok.BlockLowRank(rows, 2)):
        ones = jnp.ones(5)
        undamped = ok.invert(C, ok.Woodbury()).solve(ones)
        assert undamped.result == ok.RESULTS.undamped
        with pytest.raises(RuntimeError, match="damping"):
            ok.invert(C, ok.Woodbury()).mv(ones)
        broken = jax.tree.map(lambda u: u.at[0, 0].set(jnp.nan), C)
        P = ok.invert(broken, ok.Woodbury(), damping=1.0)
        assert P.solve(ones).result == ok.RESULTS.nonfinite_operator
    negative = jax.jit(lambda d: ok.invert(C, ok.Woodbury(), damping=d).solve(ones))
    assert negative(-1.0).result == ok.RESULTS.undamped


def test_bad_calls_raise(rng):
    params = jnp.ones(3)
    C = ok.hessian(lambda p: jnp.sum(p**2), params)
    with pytest.raises(ValueError, match=r"needs a `LowRank` curvature, got `Hessian`"):
        ok.invert(C, ok.Woodbury(), damping=1.0)
    A = lx.MatrixLinearOperator(jnp.eye(3), lx.symmetric_tag)
    with pytest.raises(ValueError, match=r"got `MatrixLinearOperator`.*ok\.Nystrom"):
        lx.linear_solve(A, params, ok.Woodbury())
    with pytest.raises(ValueError, match=r"by `CG`.*P\.mv"):
        ok.solve_rows(ok.invert(C, ok.CG(), damping=1.0), jnp.ones(3))
    P = ok.invert(ok.LowRank(jnp.ones((2, 3))), ok.Woodbury(), damping=1.0)
    with pytest.raises(ValueError, match=r"coefficients of shape \(2,\), got \(3,\)"):
        ok.solve_rows(P, jnp.ones(3))
    with pytest.raises(TypeError, match="real floating"):
        ok.LowRank(jnp.ones((2, 3), int))


@pytest.mark.parametrize(
    ("rows", "damping", "match"),
    [(1.0, 0.0, "no inverse without damping"), (np.nan, 0.1, "NaN or infinite")],
)
@pytest.mark.parametrize(
    "use",
    [
        lambda P: P.diagonal(),
        lambda P: P.entry(0, 1),
        lambda P: ok.solve_rows(P, jnp.ones(2)),
    ],
)
def test_what_has_no_inverse_raises_wherever_it_is_used(rows, damping, match, use):
    """Oracle: the message; no NaN comes back."""
    C = ok.LowRank(jnp.full((2, 3), rows))
    with pytest.raises(RuntimeError, match=match):
        use(ok.invert(C, ok.Woodbury(), damping=damping))


@pytest.mark.parametrize("rows", [jnp.zeros((0, 3)), ()])
def test_no_rows_or_no_leaves_are_no_curvature(rows):
    """Oracle: x / λ."""
    P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=2.0)
    x = jax.tree.map(lambda u: jnp.ones(u.shape[1:]), rows)
    for leaf in jax.tree.leaves(P.mv(x)):
        assert_allclose(leaf, 0.5)


@pytest.mark.parametrize("size", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("block", [None, 3])
def test_the_diagonal_is_positive_where_the_curvature_is_far_above_the_damping(
    size, block
):
    """Oracle: 1 / (λ + c) of a diagonal curvature, in float32."""
    with jax.enable_x64(False):
        C = ok.LowRank(size * jnp.eye(2, 3))
        C = C if block is None else C.block_diagonal(block)
        diagonal = ok.invert(C, ok.Woodbury(), damping=1e-3).diagonal()
        sketch = ok.Nystrom(2, key=jax.random.key(0))
        by_sketch = ok.invert(C, sketch, damping=1e-3).diagonal()
    diagonal, by_sketch = (np.asarray(d, float) for d in (diagonal, by_sketch))
    want = 1 / (1e-3 + np.array([size**2, size**2, 0]))
    for found in (diagonal, by_sketch):  # off by a few roundings over λ, upwards
        assert np.all(found >= want * (1 - 1e-6))
        assert np.all(found <= want + 4 * 2.0**-23 / 1e-3)
