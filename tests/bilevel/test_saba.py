import chex
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import oracles
import pytest
from jax import lax
from precision import X64, assert_allclose

import optkit as ok
from benchmarks.problems import hypergradient, rows, simulated

NUM, SIZE = 8, 8


def quadratic(x, y, batch):
    return batch.mean(x, y)


@pytest.fixture(scope="module")
def problem():
    seed = 0 if X64 else 1  # with a minimum, in either precision
    return simulated(key=jr.key(seed), num=NUM * SIZE, dim_x=5, dim_y=8)


@pytest.fixture(scope="module")
def blocks(problem):
    return jax.tree.map(lambda a: a.reshape(NUM, SIZE, *a.shape[1:]), problem)


def solver_of(num=NUM, rho=0.2, gamma=0.1, function=quadratic):
    return ok.bilevel.saba(
        function,
        function,
        num_upper=num,
        num_lower=num,
        outer=optax.sgd(gamma),
        inner=optax.sgd(rho),
    )


def term(blocks, i, j):
    upper, lower = rows(blocks.upper, i), rows(blocks.lower, j)
    return ok.bilevel.Batches(
        upper_x=ok.bilevel.Term(i, upper), lower_x=ok.bilevel.Term(j, lower)
    )


def test_twenty_steps_of_the_paper(blocks, rng):
    """Oracle: NumPy transcription, which sums the means anew in each step."""
    draws = rng.integers(0, NUM, (20, 2))
    x, y = rng.normal(size=5), rng.normal(size=8)
    solver = solver_of()
    batches = (term(blocks, jnp.array(i), jnp.array(j)) for i, j in draws)
    state, _ = ok.run(solver, solver.init(x, y), batches, 20)

    def terms(examples):
        every = [rows(examples, i) for i in range(NUM)]
        return jax.tree.map(np.asarray, every)

    expected = oracles.saba(
        x, y, np.zeros(8), terms(blocks.upper), terms(blocks.lower), draws, 0.2, 0.1
    )
    for got, want in zip((state.x, state.y, state.v), expected, strict=True):
        assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_converges_with_constant_steps_where_soba_stalls(problem, blocks, key):
    """Oracle: the squared hypergradient in closed form."""

    def draw(k):
        return jr.randint(jr.fold_in(key, k), (2,), 0, NUM)

    def saba_batch(k):
        return term(blocks, *draw(k))

    def soba_batch(k):
        i, j = draw(k)
        return ok.bilevel.Batches(
            upper_x=rows(blocks.upper, i), lower_x=rows(blocks.lower, j)
        )

    def value(solver, batches):
        state = solver.init(jnp.zeros(5), jnp.zeros(8))
        state, _ = ok.run(solver, state, batches, 6000, every=6000)
        return jnp.sum(hypergradient(problem, state.x) ** 2)

    assert value(solver_of(gamma=0.3), saba_batch) < (1e-20 if X64 else 1e-10)
    outer, inner = (optax.sgd(lambda k, c=c: c / (k + 1) ** 0.5) for c in (0.1, 0.2))
    noisy = ok.bilevel.soba(quadratic, quadratic, outer=outer, inner=inner)
    assert value(noisy, soba_batch) > 1e-4


def test_several_terms_in_a_step_are_their_mean_and_each_counts_once(problem):
    """Oracle: the full gradient; one of the terms is drawn three times."""
    n = NUM * SIZE
    solver = solver_of(n, rho=0.0, gamma=0.0)
    x, y = jnp.ones(5), jnp.ones(8)

    def one_row(x, y, batch):
        return quadratic(x, y, jax.tree.map(lambda a: a[None], batch))

    solver = solver_of(n, rho=0.0, gamma=0.0, function=one_row)
    state = solver.init(x, y)
    index = jnp.concatenate([jnp.arange(n), jnp.array([3, 3])])
    state, info = solver.step(state, term(problem, index, index))
    F_x, F_y = oracles.QuadraticSlopes.first(x, y, problem.upper)
    assert_allclose(state.upper.mean[0][0], F_x, rtol=1e-12)
    assert_allclose(state.upper.mean[1][0], F_y, rtol=1e-12)
    # Nothing has moved, so no row changes: there is no noise.
    index = jnp.array([5, 9])
    _, info = solver.step(state, term(problem, index, index))
    assert_allclose(info.hypergradient_norm, jnp.linalg.norm(F_x), rtol=1e-12)


@pytest.mark.parametrize("fills", [False, True])
def test_directions_nearly_double_in_the_first_pass_unless_one_step_fills_the_tables(
    fills,
):
    """Oracle: the recursion in NumPy, d + m̄ with m̄ += d / n, at a point that rests."""

    def F(x, y, batch):
        return batch * x

    def g(x, y, batch):
        return 0.5 * batch * y**2

    solver = ok.bilevel.saba(
        F, g, num_upper=NUM, num_lower=NUM, outer=optax.sgd(0.0), inner=optax.sgd(0.0)
    )

    def batch(i):
        one = ok.bilevel.Term(i, jnp.ones(i.shape))
        return ok.bilevel.Batches(upper_x=one, lower_x=one)

    state = solver.init(jnp.asarray(1.0), jnp.asarray(1.0))
    if fills:
        state, info = solver.step(state, batch(jnp.arange(NUM)))
        assert info.hypergradient_norm == 1
    memory, mean = np.full(NUM, float(fills)), float(fills)
    for i in range(NUM):
        d = 1.0 - memory[i]
        direction, mean, memory[i] = d + mean, mean + d / NUM, 1.0
        state, info = solver.step(state, batch(jnp.asarray(i)))
        assert_allclose(info.hypergradient_norm, direction, rtol=1e-14)
        assert_allclose(info.residual_norm, direction, rtol=1e-14)
    assert direction == (1.0 if fills else 2 - 1 / NUM)


def test_rounding_does_not_add_up_in_the_mean(blocks, key):
    """Oracle: the mean of the table in float64, within a few roundings."""
    narrow = jax.tree.map(lambda a: a.astype(jnp.float32), blocks)

    def batches(k):
        return term(narrow, *jr.randint(jr.fold_in(key, k), (2,), 0, NUM))

    solver, zeros = solver_of(), jnp.zeros(8, jnp.float32)
    state, _ = ok.run(
        solver, solver.init(zeros[:5], zeros), batches, 20000, every=20000
    )
    for level in (state.upper, state.lower):
        for rows_, mean in zip(level.rows, level.mean, strict=True):
            exact = jnp.mean(rows_.astype(float), axis=0)
            scale = float(jnp.max(jnp.abs(rows_)))
            assert_allclose(mean[0], exact, rtol=0, atol=2**-23 * scale)


@pytest.mark.parametrize("wrong", [-1, NUM])
def test_a_traced_index_out_of_range_changes_only_the_count(blocks, wrong):
    """Oracle: the state before; the other term of the batch is in range."""
    n = NUM * SIZE

    def one_row(x, y, batch):
        return quadratic(x, y, jax.tree.map(lambda a: a[None], batch))

    problem = jax.tree.map(lambda a: a.reshape(n, -1), blocks)
    solver = solver_of(n, function=one_row)
    step = jax.jit(lambda state, i, j: solver.step(state, term(problem, i, j)))
    good = jnp.array([2, 5])
    state, _ = step(solver.init(jnp.ones(5), jnp.ones(8)), good, good)
    bad = jnp.array([2, wrong if wrong < 0 else n])
    for i, j in ((good, bad), (bad, good)):
        kept, info = step(state, i, j)
        assert info.result == ok.RESULTS.nonfinite_gradient
        chex.assert_trees_all_equal(kept, state._replace(count=state.count + 1))


def test_a_loop_of_steps_copies_no_table(blocks):
    """Oracle: the compiled program, which writes rows in place."""
    solver = solver_of()

    def loop(state, draws):
        def one(state, ij):
            return solver.step(state, term(blocks, *ij))[0], None

        return lax.scan(one, state, draws)[0]

    state = solver.init(jnp.zeros(5), jnp.zeros(8))
    draws = jnp.zeros((9, 2), jnp.int32)
    text = jax.jit(loop, donate_argnums=0).lower(state, draws).compile().as_text()
    tables = {f"[{NUM},{leaf.shape[1]}]" for leaf in jax.tree.leaves(state.lower.rows)}
    made = [line for line in text.splitlines() if any(t in line for t in tables)]
    assert any("dynamic-update-slice" in line for line in made)
    assert not any(" copy(" in line for line in made)


def test_memory_is_five_tables(blocks):
    """Oracle: a count of the numbers in the state."""
    state = solver_of().init(jnp.zeros(5), jnp.zeros(8))
    tables = NUM * (2 * 8 + 5) + NUM * (8 + 5)
    means = 2 * ((2 * 8 + 5) + (8 + 5))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert numbers == 5 + 2 * 8 + 1 + tables + means


def test_a_term_that_is_not_finite_or_out_of_range_changes_nothing(blocks):
    """Oracle: the state before."""
    solver = solver_of()
    state, _ = solver.step(
        solver.init(jnp.zeros(5), jnp.zeros(8)),
        term(blocks, jnp.array(2), jnp.array(3)),
    )
    bad = term(blocks, jnp.array(1), jnp.array(2))
    bad = bad._replace(
        lower_x=ok.bilevel.Term(
            jnp.array(2), jax.tree.map(lambda a: a * jnp.nan, bad.lower_x.batch)
        )
    )
    gone = bad._replace(lower_x=ok.bilevel.Term(jnp.array(NUM), rows(blocks.lower, 2)))
    for batch in (bad, gone):
        kept, info = solver.step(state, batch)
        assert info.result == ok.RESULTS.nonfinite_gradient
        assert kept.count == state.count + 1
        jax.tree.map(
            np.testing.assert_array_equal,
            kept._replace(count=None),
            state._replace(count=None),
        )


def test_batches_without_terms_raise(blocks):
    solver = solver_of()
    state = solver.init(jnp.zeros(5), jnp.zeros(8))
    with pytest.raises(TypeError, match=r"upper_x=Term\(i, batch_i\)"):
        solver.step(state, rows(blocks.lower, 0))
    batch = term(blocks, jnp.array(0), jnp.array(0))
    upper, lower = batch.upper_x, batch.lower_x
    with pytest.raises(TypeError, match="integers"):
        solver.step(
            state, batch._replace(upper_x=ok.bilevel.Term(jnp.array(0.0), upper.batch))
        )
    with pytest.raises(ValueError, match="first axis"):
        solver.step(
            state, batch._replace(lower_x=ok.bilevel.Term(jnp.arange(3), lower.batch))
        )
    square = ok.bilevel.Term(jnp.zeros((2, 2), int), rows(blocks.lower, jnp.arange(2)))
    with pytest.raises(ValueError, match=r"lower_x\.index of shape \(2,\), got \(2, "):
        solver.step(state, batch._replace(lower_x=square))
    with pytest.raises(ValueError, match="num_lower >= 1"):
        ok.bilevel.saba(
            quadratic,
            quadratic,
            num_upper=3,
            num_lower=0,
            outer=optax.sgd(0.1),
            inner=optax.sgd(0.1),
        )
