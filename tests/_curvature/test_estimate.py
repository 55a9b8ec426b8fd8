"""Estimates of diagonals and traces: the mean is right, and so is the error."""

from functools import partial

import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import problems
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matfree import stochtrace
from precision import X64, assert_allclose

import optkit as ok

KEY = jr.key(5)
PARAMS = problems.mlp_params(jr.key(2))
INPUTS, TARGETS, LABELS = problems.mlp_data(jr.key(1))
A = jr.normal(jr.key(6), (6, 6))
A = (A + A.T) / 2
OPERATOR = lx.MatrixLinearOperator(A, lx.symmetric_tag)
OFF_DIAGONAL = A - jnp.diag(jnp.diagonal(A))
NUM_SIGMA = 4


def check_mean(draws, want):
    """The mean of the draws is within 4 of its standard errors."""
    error = jnp.std(draws, axis=0, ddof=1) / len(draws) ** 0.5
    rounding = 1e-12 if X64 else 1e-6
    found = jnp.mean(draws, axis=0)
    assert jnp.all(jnp.abs(found - want) <= NUM_SIGMA * error + rounding)


# The variance of one probe, spec of Rademacher probes.
ESTIMATORS = [
    pytest.param(
        ok.hutchinson_diag, jnp.diagonal(A), jnp.sum(OFF_DIAGONAL**2, 1), id="diag"
    ),
    pytest.param(
        ok.hutchinson_trace, jnp.trace(A), 2 * jnp.sum(OFF_DIAGONAL**2), id="trace"
    ),
]


@pytest.mark.parametrize(("estimator", "truth", "variance"), ESTIMATORS)
@pytest.mark.parametrize("k", [2, 8])
def test_hutchinson_and_its_standard_error_are_right(estimator, truth, variance, k):
    # oracle: closed form
    draw = jax.jit(jax.vmap(lambda key: estimator(OPERATOR, key=key, num_probes=k)))
    mean, error = draw(jr.split(KEY, 2000))
    check_mean(mean, truth)
    check_mean(error**2, variance / k)
    check_mean((mean - truth[None]) ** 2, variance / k)


def test_one_probe_is_exact_for_a_diagonal_hessian_and_has_no_error():
    # oracle: closed form
    C = ok.hessian(
        lambda p: sum(jnp.sum(x**3) for x in jax.tree.leaves(p)),
        PARAMS,
    )
    want = jax.tree.map(lambda p: 6 * p, PARAMS)
    diag, error = jax.jit(partial(ok.hutchinson_diag, num_probes=1))(C, key=KEY)
    assert error is None
    for d, w in zip(*map(jax.tree.leaves, (diag, want)), strict=True):
        assert_allclose(d, w, rtol=1e-12)
    trace = jax.jit(partial(ok.hutchinson_trace, num_probes=3))(C, key=KEY)
    assert_allclose(trace.mean, ravel_pytree(want)[0].sum(), rtol=1e-12)
    assert_allclose(trace.standard_error, 0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_hutchinson_diag_in_the_gradients_pass(k):
    # oracle: dense; the variance of a probe is the sum of the row's other squares
    args = (INPUTS, LABELS)
    H = problems.dense_hessian(problems.mlp_loss, PARAMS, *args)

    @jax.jit
    def draw(key):
        f = ok.value_grad_and_diag(problems.mlp_loss)
        value, grads, diag = f(PARAMS, *args, key=key, num_probes=k)
        return value, grads, ravel_pytree(diag)[0]

    value, grads, _ = draw(KEY)
    want = jax.jit(jax.value_and_grad(problems.mlp_loss))(PARAMS, *args)
    for g, w in zip(*map(jax.tree.leaves, ((value, grads), want)), strict=True):
        assert_allclose(g, w, rtol=1e-12, atol=1e-14 if X64 else 1e-6)

    diags = jax.jit(jax.vmap(lambda key: draw(key)[2]))(jr.split(KEY, 2000))
    check_mean(diags, jnp.diagonal(H))
    variance = jnp.sum(H**2, 1) - jnp.diagonal(H) ** 2
    check_mean((diags - jnp.diagonal(H)[None]) ** 2, variance / k)


@pytest.mark.parametrize(
    ("head", "targets", "k"),
    [
        (ok.SoftmaxCrossEntropy(), (LABELS,), 2),
        (ok.SoftmaxCrossEntropy(), (LABELS, jnp.arange(5) < 3), 1),
        (ok.SquaredError(), (TARGETS,), 1),
    ],
)
def test_squared_gradients_of_sampled_labels_average_to_gauss_newton(head, targets, k):
    # oracle: dense
    G = ok.gauss_newton(problems.mlp, head, PARAMS, INPUTS, *targets)
    f = ok.value_grad_and_gauss_newton_diag(problems.mlp, head)

    @jax.jit
    def draw(key):
        value, grads, diag = f(PARAMS, INPUTS, *targets, key=key, num_probes=k)
        return value, grads, ravel_pytree(diag)[0]

    def loss(p):
        return head(problems.mlp(p, INPUTS), *targets)

    value, grads, _ = draw(KEY)
    want = jax.jit(jax.value_and_grad(loss))(PARAMS)
    for g, w in zip(*map(jax.tree.leaves, ((value, grads), want)), strict=True):
        assert_allclose(g, w, rtol=1e-12, atol=1e-14 if X64 else 1e-6)

    diags = jax.jit(jax.vmap(lambda key: draw(key)[2]))(jr.split(KEY, 2000))
    assert jnp.all(diags >= 0)
    check_mean(diags, jnp.diagonal(jax.jit(lambda C: C.as_matrix())(G)))


@pytest.mark.parametrize("k", [1, 4])
def test_estimates_keep_each_leafs_dtype(k):
    # oracle: closed form; the Hessian is diagonal, its entries exact in bfloat16
    params = {
        "half": jnp.ones(3, jnp.bfloat16),
        "none": None,
        "single": jnp.ones((), jnp.float32),
        "double": jnp.ones((2, 2)),
    }

    def loss(p):
        return sum(jnp.sum(x.astype(float) ** 3) for x in jax.tree.leaves(p))

    _, _, diag = ok.value_grad_and_diag(loss)(params, key=KEY, num_probes=k)
    estimate = ok.hutchinson_diag(ok.hessian(loss, params), key=KEY, num_probes=k)
    for tree in (diag, estimate.mean):
        for leaf, like in zip(*map(jax.tree.leaves, (tree, params)), strict=True):
            assert (leaf.dtype, leaf.shape) == (like.dtype, like.shape)
            assert_allclose(leaf.astype(float), 6.0, rtol=1e-6)


def test_keys_of_a_batch_draw_different_probes_and_one_key_the_same():
    # oracle: identity
    f = ok.value_grad_and_diag(lambda x: jnp.sum(x) ** 2)
    diags = jax.vmap(lambda key: f(jnp.ones(64), key=key)[2])(jr.split(KEY, 8))
    assert len({tuple(d.tolist()) for d in diags}) == 8
    assert_allclose(f(jnp.ones(8), key=KEY)[2], f(jnp.ones(8), key=KEY)[2], rtol=0)


@pytest.mark.parametrize(
    ("integrand", "estimator"),
    [
        (stochtrace.leave_one_out_xtrace(), ok.hutchinson_trace),
        (stochtrace.leave_one_out_xdiag(), ok.hutchinson_diag),
    ],
)
def test_matfrees_better_estimators_work_on_products(integrand, estimator):
    # oracle: the exact diagonal; XTrace and XDiag are exact for rank 3
    rows = jax.tree.map(
        lambda p: jnp.stack([p, jnp.cos(p), jnp.sin(3 * p)]) + 0.1, PARAMS
    )
    C = ok.LowRank(rows)
    sampler = stochtrace.sampler_normal(PARAMS, num=6)
    estimate = stochtrace.estimator_leave_one_out_mean_and_sem(integrand, sampler)
    sharp = jax.jit(lambda C: ok.Estimate(*estimate(C.mv, KEY)))(C)
    exact = ravel_pytree(C.diagonal())[0]
    exact = exact.sum() if estimator is ok.hutchinson_trace else exact
    assert_allclose(ravel_pytree(sharp.mean)[0], exact, rtol=1e-6, atol=1e-8)
    rough = jax.jit(partial(estimator, num_probes=100))(C, key=KEY)
    error = ravel_pytree(rough.standard_error)[0]
    assert jnp.all(jnp.abs(ravel_pytree(rough.mean)[0] - exact) < 5 * error)


@pytest.mark.parametrize("num_probes", [0, -1, True])
def test_a_number_of_probes_that_is_none_raises(num_probes):
    # oracle: none, the message
    def loss(x):
        return jnp.sum(x**2)

    bad, x = {"key": KEY, "num_probes": num_probes}, jnp.ones(2)
    gauss_newton = ok.value_grad_and_gauss_newton_diag(jnp.multiply, ok.SquaredError())
    for call in (
        lambda: ok.hutchinson_diag(OPERATOR, **bad),
        lambda: ok.hutchinson_trace(OPERATOR, **bad),
        lambda: ok.value_grad_and_diag(loss)(x, **bad),
        lambda: gauss_newton(x, x, x, **bad),
    ):
        with pytest.raises(ValueError, match="num_probes >= 1"):
            call()


def test_a_head_that_cannot_sample_raises():
    # oracle: none, the message
    with pytest.raises(TypeError, match="samples labels"):
        ok.value_grad_and_gauss_newton_diag(jnp.multiply, jnp.sum)


def test_estimates_of_explicitly_sharded_params_stay_sharded():
    # oracle: closed form
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Explicit,))
    w = jnp.arange(16.0).reshape(8, 2)

    @partial(jax.jit, static_argnums=1)
    def diagonals(w, k):
        def loss(w):
            return jnp.sum(w**3)

        C = ok.hessian(loss, w)
        pair = ok.value_grad_and_diag(loss)(w, key=KEY, num_probes=k)
        trace = ok.hutchinson_trace(C, key=KEY, num_probes=k)
        return pair[2], ok.hutchinson_diag(C, key=KEY, num_probes=k).mean, trace.mean

    with jax.set_mesh(mesh):
        split = jax.device_put(w, NamedSharding(mesh, PartitionSpec("d", None)))
        for k in (1, 3):
            *diags, trace = diagonals(split, k)
            assert_allclose(trace, 6 * w.sum(), rtol=1e-12)
            for diag in diags:
                assert_allclose(diag, 6 * w, rtol=1e-12)
                assert jax.typeof(diag).sharding == jax.typeof(split).sharding


@pytest.mark.parametrize("estimate", ["trace", "diag", "value_grad_and_diag"])
def test_many_probes_do_not_overflow_an_integer(estimate):
    """Oracle: closed form, the standard error of ±2b; k (k - 1) exceeds int32."""
    k, b = 46_342, 0.5
    H = jnp.array([[2.0, b], [b, 1.0]], "f4")
    C = lx.MatrixLinearOperator(H, lx.symmetric_tag)
    with jax.enable_x64(False):
        if estimate == "value_grad_and_diag":
            f = ok.value_grad_and_diag(lambda x: 0.5 * x @ H @ x)
            _, _, diag = f(jnp.ones(2, "f4"), key=KEY, num_probes=k)
            assert_allclose(diag, jnp.diagonal(H), atol=4 * b / k**0.5)
            return
        make = getattr(ok, f"hutchinson_{estimate}")
        found = make(C, key=KEY, num_probes=k)
    spread, want = (2 * b, 3.0) if estimate == "trace" else (b, jnp.diagonal(H))
    assert_allclose(found.mean, want, atol=4 * spread / k**0.5)
    assert_allclose(found.standard_error, spread / k**0.5, rtol=0.01)


def with_count(x):
    """A loss of one argument, with aux of two dtypes, one an integer."""
    return jnp.sum(x**4), {"mean": jnp.mean(x), "count": jnp.asarray(x.size)}


@pytest.mark.parametrize("num_probes", [1, 3])
def test_aux_comes_back_beside_the_value(num_probes):
    """Oracle: `jax.value_and_grad(has_aux=True)`, and the diagonal in closed form."""
    x = jnp.array([1.0, -2.0, 0.5])
    f = jax.jit(
        partial(ok.value_grad_and_diag(with_count, has_aux=True), num_probes=num_probes)
    )
    (value, aux), grads, diag = f(x, key=KEY)
    (want, want_aux), want_grads = jax.value_and_grad(with_count, has_aux=True)(x)
    assert_allclose(value, want, rtol=1e-12)
    assert_allclose(grads, want_grads, rtol=1e-12)
    assert_allclose(diag, 12 * x**2, rtol=1e-12)
    assert aux["count"] == want_aux["count"]
    assert_allclose(aux["mean"], want_aux["mean"], rtol=1e-12)


@pytest.mark.parametrize("num_probes", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("head", [ok.SquaredError(), ok.SoftmaxCrossEntropy()])
def test_a_sampled_gradient_is_clipped_by_its_norm(head, masked, num_probes):
    """Oracle: d = B ĝ∘ĝ, so each draw's d is scaled by min(1, c²B / Σd); aux too."""

    def model(w, x):
        return x @ w, jnp.sum(x)

    w, x = jr.normal(KEY, (3, 4)), jr.normal(jr.key(7), (6, 3))
    y = jnp.zeros((6, 4)) if isinstance(head, ok.SquaredError) else jnp.arange(6) % 4
    where = (jnp.arange(6) < 4,) if masked else ()
    make = partial(ok.value_grad_and_gauss_newton_diag, model, head, has_aux=True)
    keys = [KEY] if num_probes == 1 else jr.split(KEY, num_probes)
    draws = [make()(w, x, y, *where, key=key)[2] for key in keys]
    B, c = (
        (4 if masked else 6),
        0.9 * float(jnp.sum(draws[0]) / (4 if masked else 6)) ** 0.5,
    )
    want = sum(d * jnp.minimum(1, c**2 * B / jnp.sum(d)) for d in draws) / num_probes
    found = make(max_norm=c)(w, x, y, *where, key=KEY, num_probes=num_probes)
    assert_allclose(found[2], want, rtol=1e-12)
    assert_allclose(found[0][1], jnp.sum(x), rtol=1e-12)
    free = make(max_norm=1e6)(w, x, y, *where, key=KEY, num_probes=num_probes)
    assert_allclose(free[2], sum(draws) / num_probes, rtol=1e-12)


# Of docs/scaling.md: how the loss is given, whether JAX tracks what varies, whether
# params do, whether gradient and diagonal are averaged after; and the resulting factor.
FORMS = {
    "tracked-mean": (True, False, "mean", False, 1),
    "tracked-mean-after": (True, False, "mean", True, 1),
    "tracked-own": (True, False, "own", True, 8),
    "varying-own-after": (True, True, "own", True, 1),
    "untracked-mean-after": (False, False, "mean", True, 1),
    "untracked-own-after": (False, False, "own", True, 1),
}


@pytest.mark.parametrize("num_probes", [1, 2])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_on_mapped_devices_the_diagonal_follows_the_gradient(form, num_probes):
    """Oracle: one device with the whole batch, times the factor of the table."""
    tracked, varying, of, after, factor = form
    batch = jr.normal(jr.key(8), (16, 3)) * jnp.linspace(0.5, 2.0, 16)[:, None]
    params = jnp.array([0.3, -1.0, 0.2])

    def own(params, batch):
        return jnp.mean(jnp.tanh(batch @ params) ** 2)

    def mean(params, batch):
        return jax.lax.pmean(own(params, batch), "x")

    def mapped(params, batch):
        if varying:
            params = jax.lax.pcast(params, "x", to="varying")
        f = ok.value_grad_and_diag(own if of == "own" else mean)
        found = f(params, batch, key=KEY, num_probes=num_probes)[1:]
        return jax.lax.pmean(found, "x") if after else found

    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    specs = (PartitionSpec(), PartitionSpec("x"))
    mapped = jax.shard_map(
        mapped,
        mesh=mesh,
        in_specs=specs,
        out_specs=PartitionSpec(),
        check_vma=tracked,
    )
    expected = ok.value_grad_and_diag(own)(
        params, batch, key=KEY, num_probes=num_probes
    )
    for found, want in zip(jax.jit(mapped)(params, batch), expected[1:], strict=True):
        assert_allclose(found, factor * want, rtol=1e-10)
