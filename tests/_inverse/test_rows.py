"""Products with combinations of rows: accurate in float32 where rows repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import assert_allclose

import optkit as ok


def windows(rng, m=64, d=4000):
    """Windows of float32 gradients that are hard on rounding."""
    common = rng.normal(size=(m, 8)) @ rng.normal(size=(8, d)) / 2
    correlated = common + rng.normal(size=(m, d))
    correlated /= np.linalg.norm(correlated, axis=1, keepdims=True)
    trend = rng.normal(size=d)
    trend = trend / np.linalg.norm(trend) + rng.normal(size=(m, d)) / 10 / d**0.5
    equal = correlated.copy()
    equal[10:20] = equal[3]
    return {"correlated": correlated, "trend": trend, "equal": equal}


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "float32"])
@pytest.mark.parametrize("damping", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("name", ["correlated", "trend", "equal"])
def test_rows_are_solved_in_float32(rng, name, damping, x64):
    """Oracle: the same form in NumPy float64; with the r x r part in either dtype."""
    G = windows(rng)[name].astype(np.float32)
    rows = (G / np.float32(8)).astype(np.float32)
    wide, c = rows.astype(np.float64), np.zeros(64)
    c[3] = 1
    want = wide.T @ np.linalg.solve(damping * np.eye(64) + wide @ wide.T, c)
    with jax.enable_x64(x64):
        P = ok.invert(ok.LowRank(jnp.asarray(rows)), ok.Woodbury(), damping=damping)
        got = np.asarray(ok.solve_rows(P, jnp.asarray(c, np.float32)), np.float64)
    assert np.linalg.norm(got - want) < 3e-5 * np.linalg.norm(want)


@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("name", ["correlated", "trend"])
def test_rows_in_bfloat16_cost_one_rounding_at_the_end(rng, name, damping):
    """Oracle: NumPy float64, of the rows as they were rounded."""
    rows = jnp.asarray(windows(rng)[name] / 8, jnp.bfloat16)
    wide = np.asarray(rows, np.float64)
    K = damping * np.eye(64) + wide @ wide.T
    c, x = np.eye(64)[3], wide.mean(0)
    x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=damping)
    solved = ok.solve_rows(P, jnp.asarray(c, jnp.float32))
    product = P.mv(jnp.asarray(x, jnp.bfloat16))
    wants = (
        wide.T @ np.linalg.solve(K, c),
        (x - wide.T @ np.linalg.solve(K, wide @ x)) / damping,
    )
    for got, want in zip((solved, product), wants, strict=True):
        assert got.dtype == jnp.bfloat16
        off = np.asarray(got, np.float64) - want
        # The difference of the second cancels in float32, to some eps / λ.
        limit = 4e-3 if got is solved else 4e-3 + 1e-6 / damping
        assert np.linalg.norm(off) < limit * np.linalg.norm(want)


def test_solved_rows_equal_the_product_and_have_derivatives(rng):
    """Oracle: `P.mv` of Uᵀc, and its derivatives, for rows of which two are equal."""
    G = rng.normal(size=(5, 9))
    G[1] = G[2]
    c = jnp.asarray(rng.normal(size=5))

    def by_rows(rows, damping, c):
        P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=damping)
        return ok.solve_rows(P, c)

    def by_product(rows, damping, c):
        P = ok.invert(ok.LowRank(rows), ok.Woodbury(), damping=damping)
        return P.mv(c @ rows)

    point = (jnp.asarray(G), jnp.asarray(0.1), c)
    assert_allclose(by_rows(*point), by_product(*point), rtol=1e-10, float32=1e-4)
    for derivative in (jax.jacfwd, jax.jacrev):
        got, want = (
            jax.jit(derivative(f, (0, 1, 2)))(*point) for f in (by_rows, by_product)
        )
        for x, y in zip(got, want, strict=True):
            assert_allclose(x, y, rtol=1e-8, atol=1e-9, float32=1e-3)
