"""M-FAC against the authors' code, a dense inverse, and its precision and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import Mfac
from precision import assert_allclose

import optkit as ok


def split(vector):
    """The same vector as a pytree: matrix, vector and scalar."""
    vector = jnp.asarray(vector)
    return {"a": vector[:6].reshape(2, 3), "b": [vector[6:-1], vector[-1]]}


def flat(tree):
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def dense(window, g, damping, count):
    """F⁻¹g from the d x d matrix."""
    F = damping * np.eye(g.size) + window.T @ window / count
    return np.linalg.solve(F, g)


def exact(rows, i, damping):
    """F⁻¹gᵢ in float64 by singular values: accurate whatever the damping."""
    left, s, right = np.linalg.svd(np.float64(rows), full_matrices=False)
    return len(rows) * right.T @ (s / (s**2 + len(rows) * damping) * left[i])


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def updates_of(tx, grads):
    """The update and the state after each gradient; eager, to compile less."""
    state = tx.init(jax.tree.map(jnp.zeros_like, grads[0]))
    for grad in grads:
        updates, state = tx.update(grad, state)
        yield updates, state


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 3},
    ],
    ids=str,
)
def test_twenty_steps_of_the_authors_code(options, rng):
    """Oracle: NumPy transcription, through three wrap-arounds of a window of 6."""
    theta, H = rng.standard_normal(15), np.diag(np.linspace(0.5, 2, 15))
    noise = rng.standard_normal((20, 15))
    oracle = Mfac(theta, 6, 0.5, 0.1, **options)
    tx = ok.optim.mfac(0.1, 6, 0.5, **options)
    params = split(theta)
    step, state = jax.jit(tx.update), tx.init(params)
    for e in noise:
        grad = H @ oracle.theta + e
        updates, state = step(split(H @ flat(params) + e), state, params)
        params = optax.apply_updates(params, updates)
        assert_allclose(flat(params), oracle.step(grad), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("count_filled", [False, True])
def test_it_is_the_dense_inverse_through_three_wrap_arounds(count_filled, rng):
    """Oracle: dense, over the last m gradients."""
    m, damping, grads = 5, 1e-3, rng.standard_normal((17, 20))
    tx = ok.optim.scale_by_mfac(m, damping, count_filled=count_filled)
    found = updates_of(tx, [split(g) for g in grads])
    for i, (updates, _) in enumerate(found):
        last = grads[max(0, i + 1 - m) : i + 1]
        count = len(last) if count_filled else m
        assert_allclose(flat(updates), dense(last, grads[i], damping, count), rtol=1e-9)


@pytest.mark.parametrize(("count_filled", "count"), [(False, 8), (True, 1)])
def test_one_gradient_in_an_empty_window(count_filled, count, rng):
    """Oracle: closed form, g / (λ + ‖g‖²/m)."""
    g = rng.standard_normal(10)
    tx = ok.optim.scale_by_mfac(8, 1e-2, count_filled=count_filled)
    updates, state = tx.update(jnp.asarray(g), tx.init(jnp.asarray(g)))
    assert_allclose(updates, g / (1e-2 + g @ g / count), rtol=1e-12)
    assert int(state.pointer) == int(state.num_filled) == 1


def test_damping_has_the_units_of_the_squared_gradient(rng):
    """Oracle: g -> s g, λ -> s²λ leaves s F⁻¹g."""
    grads, s = jnp.asarray(rng.standard_normal((7, 10))), 100.0
    plain = updates_of(ok.optim.scale_by_mfac(4, 1e-2), list(grads))
    scaled = updates_of(ok.optim.scale_by_mfac(4, 1e-2 * s**2), list(s * grads))
    for (u, _), (w, _) in zip(plain, scaled, strict=True):
        assert_allclose(s * w, u, rtol=1e-10)


def repeated(rng, noise, dtype=np.float32):
    return gradients_near(rng.standard_normal((20, 4000)), noise, rng, dtype)


def gradients_near(bases, noise, rng, dtype=np.float32):
    """Gradients of norm 1 that repeat, each time with noise of that norm."""
    d = bases.shape[1]
    grads = bases[np.arange(70) % len(bases)] + noise * rng.standard_normal((70, d))
    return (grads / np.sqrt(d)).astype(dtype)


KINDS = {
    "duplicates": lambda rng: repeated(rng, 0.0),
    "all_equal": lambda rng: gradients_near(rng.standard_normal((1, 4000)), 0.0, rng),
    "near_duplicates": lambda rng: repeated(rng, 1e-2),
    "nearer_duplicates": lambda rng: repeated(rng, 1e-4),
    "trend": lambda rng: gradients_near(rng.standard_normal((1, 4000)), 1e-2, rng),
    "strong_trend": lambda rng: gradients_near(
        rng.standard_normal((1, 4000)), 1e-3, rng
    ),
    "more_rows_than_columns": lambda rng: rng.standard_normal((70, 5)).astype("f4"),
}


@pytest.mark.parametrize("damping", [1e-3, 1e-6])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_float32_is_accurate_where_gradients_nearly_repeat(kind, damping, x64, rng):
    """Oracle: float64 singular values; the difference form is off by 1e-2 and more."""
    grads, m = kind(rng), 32
    with jax.enable_x64(x64):
        found = updates_of(
            ok.optim.scale_by_mfac(m, damping), [jnp.asarray(g) for g in grads]
        )
        for i, (updates, state) in enumerate(found):
            if i in {m // 2, 69}:
                rows = np.asarray(state.window)
                expected = exact(rows, i % m, damping)
                assert relative_error(np.float64(updates), expected) < 1e-4
        assert state.gram.dtype == (jnp.float64 if x64 else jnp.float32)


@pytest.mark.parametrize("damping", [1e-1, 1e-3, 1e-5])
def test_float32_is_accurate_for_leaves_of_millions(damping, rng):
    """Oracle: the dense inverse in float64, where gradients have most in common."""
    m, n = 4, 1 << 21
    common = rng.normal(size=n)
    grads = (common + 0.1 * rng.normal(size=(m, n))) / n**0.5
    grads = grads.astype(np.float32)
    tx = ok.optim.scale_by_mfac(m, damping)
    state, update = tx.init(jnp.zeros(n, jnp.float32)), jax.jit(tx.update)
    for g in grads:
        u, state = update(jnp.asarray(g), state)
    G = grads.astype(np.float64)
    K = G @ G.T
    assert np.abs(np.asarray(state.gram, np.float64) - K).max() < 1e-6 * K.max()
    c = np.linalg.solve(m * damping * np.eye(m) + K, np.eye(m)[-1])
    want = m * G.T @ c
    off = np.asarray(u, np.float64) - want
    assert np.linalg.norm(off) < 3e-5 * np.linalg.norm(want)


def test_a_zero_gradient_gives_a_zero_update(rng):
    """Oracle: identity; also while all of the window is empty."""
    g = jnp.asarray(rng.standard_normal(10))
    for updates, _ in updates_of(ok.optim.scale_by_mfac(4, 1e-6), [0 * g, 0 * g]):
        assert not np.any(updates)
    *_, (updates, _) = updates_of(ok.optim.scale_by_mfac(4, 1e-6), [g, 0 * g])
    assert not np.any(updates)


def test_a_narrow_window_belongs_to_its_gram_matrix(rng):
    """Oracle: dense, from the gradients as they were rounded; blocks overlap."""
    grads = [jnp.asarray(g, jnp.float32) for g in rng.standard_normal((11, 300_000))]
    tx = ok.optim.scale_by_mfac(7, 1e-3, window_dtype=jnp.bfloat16)
    *_, (updates, state) = updates_of(tx, grads)
    rows = np.asarray(state.window).astype(np.float64)
    assert state.window.dtype == jnp.bfloat16
    assert updates.dtype == jnp.float32
    assert_allclose(rows[3], grads[10], rtol=2**-8)
    assert_allclose(state.gram, rows @ rows.T, rtol=1e-4, atol=1e-1)
    assert relative_error(np.float64(updates), exact(rows, 3, 1e-3)) < 1e-4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_step_makes_no_copy_of_the_window(dtype):
    """Oracle: the compiled program's temporaries, beside 64 MB of float32 rows."""
    params = {"a": jnp.zeros((50, 1000), jnp.float32), "b": jnp.zeros(200_000, "f4")}
    tx = ok.optim.scale_by_mfac(64, 1e-3, window_dtype=dtype)
    state = jax.eval_shape(tx.init, params)
    step = jax.jit(tx.update, donate_argnums=1).lower(params, state).compile()
    memory = step.memory_analysis()
    size = 64 * 250_000 * jnp.dtype(dtype).itemsize
    assert memory.alias_size_in_bytes >= size  # written in place
    assert memory.temp_size_in_bytes < 0.25 * 64 * 250_000 * 4


def test_a_batch_is_as_careful_as_its_members(rng):
    """Oracle: one seed at a time, one of them with equal gradients; nested batches."""
    grads = jnp.asarray(rng.standard_normal((2, 1, 30)).repeat(6, 1), jnp.float32)
    grads = grads.at[1].add(jnp.asarray(rng.standard_normal((6, 30)), jnp.float32))
    tx = ok.optim.scale_by_mfac(4, 1e-6, window_dtype=jnp.bfloat16)
    nested = grads.reshape(2, 1, 6, 30)
    step, state = (
        jax.vmap(jax.vmap(tx.update)),
        jax.vmap(jax.vmap(tx.init))(nested[:, :, 0]),
    )
    step = jax.jit(step)
    for i in range(6):
        found, state = step(nested[:, :, i], state)
    for seed in range(2):
        *_, (expected, _) = updates_of(tx, list(grads[seed]))
        assert relative_error(found[seed, 0], expected) < 1e-5


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_batch_takes_no_eigenvectors_unless_a_member_needs_them(depth, rng):
    """Oracle: the program, which has a branch rather than both of its sides."""
    tx, shape = ok.optim.scale_by_mfac(4, 1e-6), (2,) * depth
    init, update = tx.init, tx.update
    for _ in shape:
        init, update = jax.vmap(init), jax.vmap(update)
    grads = jnp.asarray(rng.standard_normal((*shape, 30)))
    program = jax.make_jaxpr(update)(grads, init(grads))
    is_reached = {"eigh": 0, "cholesky": 0}
    count_unconditional(program.jaxpr, is_reached)
    assert is_reached == {"eigh": 0, "cholesky": 1}


def count_unconditional(jaxpr, counts):
    """Counts the primitives that run whatever the data, by name."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in counts:
            counts[equation.primitive.name] += 1
        if equation.primitive.name == "cond":
            continue
        for inner in jax.tree.leaves(equation.params):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                count_unconditional(inner, counts)


def test_a_nan_leaves_after_m_steps(rng):
    """Oracle: the run from the window's first finite gradient."""
    grads = list(jnp.asarray(rng.standard_normal((8, 10))))
    bad = [*grads[:2], grads[2].at[3].set(jnp.nan), *grads[3:]]
    found = [u for u, _ in updates_of(ok.optim.scale_by_mfac(3, 1e-2), bad)]
    expected = [u for u, _ in updates_of(ok.optim.scale_by_mfac(3, 1e-2), grads)]
    for i in range(8):
        if 2 <= i < 5:
            assert np.all(np.isnan(found[i]))
        else:
            assert_allclose(found[i], expected[i], rtol=1e-10)


def test_the_mean_of_bfloat16_updates_is_float32():
    """Oracle: the mean of a constant is the constant; a bf16 average stalls."""
    tx = ok.optim.mfac(1.0, 1, 1.0, momentum=0.99)
    grads = jnp.ones(2, jnp.bfloat16)
    body = lambda state, _: tx.update(grads, state)[::-1]  # noqa: E731
    state, updates = jax.lax.scan(body, tx.init(grads), length=600)
    assert updates.dtype == jnp.bfloat16
    assert_allclose(state[1].mean, (1 - 0.99**600) / 3, rtol=2**-8)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: ok.optim.scale_by_mfac(0, 0.1),
            r"`ok.optim.scale_by_mfac`.*window.*0",
        ),
        (lambda: ok.optim.scale_by_mfac(True, 0.1), r"integer window.*True"),
        (
            lambda: ok.optim.scale_by_mfac(4, 0.0),
            r"`ok.optim.scale_by_mfac`.*damping > 0.*0.0",
        ),
        (lambda: ok.optim.scale_by_mfac(4, float("inf")), r"damping=inf"),
        (
            lambda: ok.optim.scale_by_mfac(4, 0.1, window_dtype=int),
            r"floating window_dtype.*int.*jnp.float32",
        ),
        (lambda: ok.optim.mfac(-0.1, 4, 0.1), r"`ok.optim.mfac`.*learning_rate.*-0.1"),
        (
            lambda: ok.optim.mfac(0.1, 4, 0.1, momentum=1.0),
            r"`ok.optim.mfac`.*momentum=1.0",
        ),
        (
            lambda: ok.optim.mfac(0.1, 4, 0.1, weight_decay=-1),
            r"`ok.optim.mfac`.*weight_decay.*-1",
        ),
    ],
)
def test_bad_arguments_raise_at_construction(make, match):
    """Oracle: the message names the call, the value and the next step."""
    with pytest.raises((ValueError, TypeError), match=match):
        make()


@pytest.mark.parametrize("window_dtype", [None, jnp.float32])
def test_gradients_unlike_the_window_are_refused(window_dtype):
    """Oracle: the message names the call, what arrived and what to do."""
    params = {"w": jnp.ones(3), "b": jnp.ones(2)}
    tx = ok.optim.scale_by_mfac(2, 0.1, window_dtype=window_dtype)
    state = tx.init(params)
    with pytest.raises(
        ValueError, match=r"(?s)`ok.optim.scale_by_mfac`.*structure.*init"
    ):
        tx.update({"w": jnp.ones(3)}, state)
    with pytest.raises(ValueError, match=r"\(4,\) at gradients\['b'\].*\(2,\)"):
        tx.update(params | {"b": jnp.ones(4)}, state)
    wrong = params | {"b": jnp.ones(2, jnp.bfloat16)}
    if window_dtype is None:
        with pytest.raises(TypeError, match=r"bfloat16 at gradients\['b'\].*cast"):
            tx.update(wrong, state)
    with pytest.raises(TypeError, match=r"int\d\d at gradients\['b'\]"):
        tx.update(params | {"b": jnp.ones(2, int)}, state)


@pytest.mark.parametrize("leaf", [1, 1j])
def test_integer_and_complex_params_are_refused_with_their_path(leaf):
    """Oracle: the message."""
    with pytest.raises(
        TypeError, match=r"`ok.optim.scale_by_mfac`.*real.*params\['z'\]"
    ):
        ok.optim.scale_by_mfac(2, 0.1).init({"z": jnp.full(3, leaf)})


def test_a_square_that_overflows_is_nan_until_it_has_left_the_window():
    """Oracle: identity. An infinite entry of the Gram matrix would make updates 0."""
    tx, ones = ok.optim.scale_by_mfac(2, 0.1), jnp.ones(2, jnp.float32)
    state, seen = tx.init(ones), []
    for size in (1e30, 1.0, 1.0):
        grads = ones * jnp.float32(size)
        updates, state = tx.update(grads, state._replace(gram=state.gram.astype("f4")))
        seen.append(bool(np.all(np.isfinite(updates))))
    assert seen == [False, False, True]
