"""Every curvature, of itself and made of others, is its dense twin."""

import functools
import re
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import problems
import pytest
from jax.flatten_util import ravel_pytree
from precision import assert_allclose

import optkit as ok

KEY = jr.key(1)
INPUTS, TARGETS, LABELS = problems.mlp_data(KEY)
PARAMS = problems.mlp_params(jr.key(2))
SIZE = ravel_pytree(PARAMS)[0].size
MASK = {
    "hidden": (True, False),
    "frozen": None,
    "out": {"w": jr.bernoulli(KEY, 0.5, (3, 3)), "bias": True},
    "gain": False,
}


class Twins(NamedTuple):
    """An operator and its matrix as functions of the params, and what is known."""

    operator: object
    matrix: object
    is_psd: bool
    has_diagonal: bool


def quartic(z, y):
    return jnp.mean(jnp.sum((z - y) ** 4, -1))


def half_square(z, y):
    return 0.5 * jnp.mean(jnp.sum((z - y) ** 2, -1))


def cross_entropy(z, labels):
    return -jnp.mean(jax.nn.log_softmax(z)[jnp.arange(labels.size), labels])


def gauss_newton_twins(head, loss_fn, *targets):
    args = (INPUTS, *targets)
    return Twins(
        lambda p: ok.gauss_newton(problems.mlp, head, p, *args),
        lambda p: problems.dense_gauss_newton(problems.mlp, loss_fn, p, *args),
        is_psd=True,
        has_diagonal=False,
    )


def blocks_of(matrix, size):
    """Zeroes all entries that two blocks of `size` within a leaf do not share."""
    labels, start = [], 0
    for leaf in jax.tree.leaves(PARAMS):
        labels += [(start, i // size) for i in range(leaf.size)]
        start += leaf.size
    same = np.array([[a == b for a in labels] for b in labels])
    return jnp.where(same, matrix, 0)


def project(matrix):
    keep = ravel_pytree(
        jax.tree.map(lambda m, p: jnp.broadcast_to(m, p.shape), MASK, PARAMS)
    )[0]
    return jnp.where(keep[:, None] & keep[None], matrix, 0)


HESSIAN = Twins(
    lambda p: ok.hessian(problems.mlp_loss, p, INPUTS, LABELS),
    lambda p: problems.dense_hessian(problems.mlp_loss, p, INPUTS, LABELS),
    is_psd=False,
    has_diagonal=False,
)
FISHER = Twins(
    lambda p: ok.empirical_fisher(problems.mlp_example_loss, p, (INPUTS, LABELS)),
    lambda p: problems.dense_fisher(problems.mlp_example_loss, p, (INPUTS, LABELS)),
    is_psd=True,
    has_diagonal=True,
)
BASIC = {
    "hessian": HESSIAN,
    "gauss_newton_quartic": gauss_newton_twins(quartic, quartic, TARGETS),
    "gauss_newton_square": gauss_newton_twins(ok.SquaredError(), half_square, TARGETS),
    "gauss_newton_cross_entropy": gauss_newton_twins(
        ok.SoftmaxCrossEntropy(), cross_entropy, LABELS
    ),
    "empirical_fisher": FISHER,
    "block_low_rank": FISHER._replace(
        operator=lambda p: FISHER.operator(p).block_diagonal(4),
        matrix=lambda p: blocks_of(FISHER.matrix(p), 4),
    ),
}


def made_of(twins, operator, matrix, **known):
    return twins._replace(
        operator=lambda p: operator(twins.operator(p)),
        matrix=lambda p: matrix(twins.matrix(p)),
        **known,
    )


def two_rows(p):
    return jax.tree.map(lambda x: jnp.stack([x, jnp.cos(x)]), p)


def flat_rows(p):
    return jnp.stack([ravel_pytree(p)[0], jnp.cos(ravel_pytree(p)[0])])


def saddle(p):
    total = sum(jnp.sum(x) for x in jax.tree.leaves(p))
    return jnp.sum(p["hidden"][0] ** 3) - total**2


# Cheap to compile, as the base of all that is made of others.
ROWS = Twins(
    lambda p: ok.LowRank(two_rows(p)),
    lambda p: flat_rows(p).T @ flat_rows(p),
    is_psd=True,
    has_diagonal=True,
)
SADDLE = Twins(
    lambda p: ok.hessian(saddle, p),
    lambda p: problems.dense_hessian(saddle, p),
    is_psd=False,
    has_diagonal=False,
)
MADE = {
    "damped_saddle": made_of(
        SADDLE, lambda C: ok.Damped(C, 0.3), lambda C: C + 0.3 * jnp.eye(SIZE)
    ),
    "damped_rows": made_of(
        ROWS, lambda C: ok.Damped(C, 0.3), lambda C: C + 0.3 * jnp.eye(SIZE)
    ),
    "sum": Twins(
        lambda p: SADDLE.operator(p) + ROWS.operator(p),
        lambda p: SADDLE.matrix(p) + ROWS.matrix(p),
        is_psd=False,
        has_diagonal=False,
    ),
    "sum_with_itself": made_of(ROWS, lambda C: C + C, lambda C: 2 * C),
    "difference": made_of(ROWS, lambda C: C - C / 2, lambda C: C / 2, is_psd=False),
    "multiple": made_of(ROWS, lambda C: 3.0 * C, lambda C: 3 * C),
    "multiple_by_array": made_of(
        ROWS, lambda C: C * jnp.asarray(3.0), lambda C: 3 * C, is_psd=False
    ),
    "negative": made_of(ROWS, lambda C: -C, lambda C: -C, is_psd=False),
    "masked": made_of(ROWS, lambda C: ok.Masked(C, MASK), project),
    "masked_saddle": made_of(SADDLE, lambda C: ok.Masked(C, MASK), project),
    "all_of_them": made_of(
        ROWS,
        lambda C: ok.Damped(ok.Masked(2.0 * C + C, MASK), 0.1) / 2,
        lambda C: (project(3 * C) + 0.1 * jnp.eye(SIZE)) / 2,
    ),
}
ALL = BASIC | MADE
every = pytest.mark.parametrize("name", ALL)
some = pytest.mark.parametrize("name", [*BASIC, "all_of_them"])


@functools.cache
def operator_of(name):
    return ALL[name].operator(PARAMS)


@functools.cache
def matrix_fn(name):
    return jax.jit(ALL[name].matrix)


def matrix_of(name):
    return matrix_fn(name)(PARAMS)


def vector(seed=3):
    flat, unravel = ravel_pytree(PARAMS)
    v = jr.normal(jr.key(seed), flat.shape)
    return unravel(v), v


@every
def test_matrix_and_product_are_those_of_the_dense_twin(name):
    # oracle: dense
    v, flat = vector()
    matrix, product = jax.jit(lambda C: (C.as_matrix(), C.mv(v)))(operator_of(name))
    assert jax.tree.structure(product) == jax.tree.structure(PARAMS)
    want = matrix_of(name)
    assert_allclose(matrix, want, rtol=1e-10, atol=1e-12)
    assert_allclose(ravel_pytree(product)[0], want @ flat, rtol=1e-10, atol=1e-12)


@every
def test_diagonal_is_the_matrix_diagonal_or_says_how_to_estimate_it(name):
    # oracle: dense
    C = operator_of(name)
    if not ALL[name].has_diagonal:
        with pytest.raises(NotImplementedError, match="hutchinson_diag"):
            C.diagonal()
        return
    want = jnp.diagonal(matrix_of(name))
    assert_allclose(ravel_pytree(C.diagonal())[0], want, rtol=1e-10, atol=1e-14)
    assert_allclose(lx.diagonal(C), want, rtol=1e-10, atol=1e-14)


@every
def test_lineax_reads_the_right_tags(name):
    # oracle: identity
    C = operator_of(name)
    assert lx.is_symmetric(C)
    assert lx.is_positive_semidefinite(C) is ALL[name].is_psd
    for is_something in (
        lx.is_negative_semidefinite,
        lx.is_diagonal,
        lx.is_tridiagonal,
        lx.is_lower_triangular,
        lx.is_upper_triangular,
        lx.has_unit_diagonal,
    ):
        assert not is_something(C)
    assert C.T is C
    assert lx.conj(C) is C
    assert C.in_size() == C.out_size() == SIZE
    assert C.in_structure() == C.out_structure()


@some
@pytest.mark.parametrize("convert", [lx.linearise, lx.materialise])
def test_lineax_converts_to_the_same_operator(name, convert):
    # oracle: dense
    v, flat = vector()

    @jax.jit
    def product(C):
        converted = convert(C)
        assert lx.is_symmetric(converted)
        assert lx.is_positive_semidefinite(converted) is ALL[name].is_psd
        return ravel_pytree(converted.mv(v))[0]

    got, want = product(operator_of(name)), matrix_of(name) @ flat
    assert_allclose(got, want, rtol=1e-10, atol=1e-12)


@some
def test_operators_can_be_stacked_and_mapped_over(name):
    # oracle: identity
    many = jax.vmap(problems.mlp_params)(jr.split(KEY, 2))
    v, flat = vector()

    @jax.jit
    def products(many):
        return jax.vmap(lambda p: ALL[name].operator(p).mv(v))(many)

    second = jax.tree.map(lambda x: x[1], many)
    got = jax.tree.map(lambda x: x[1], products(many))
    want = matrix_fn(name)(second) @ flat
    assert_allclose(ravel_pytree(got)[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["hessian", "gauss_newton_cross_entropy", "empirical_fisher", "all_of_them"],
)
def test_gradients_flow_through_the_product_to_the_params(name):
    # oracle: dense
    v, flat = vector()

    def by_operator(p):
        return flat @ ravel_pytree(ALL[name].operator(p).mv(v))[0]

    def by_matrix(p):
        return flat @ ALL[name].matrix(p) @ flat

    grads = (jax.jit(jax.grad(f))(PARAMS) for f in (by_operator, by_matrix))
    got, want = (ravel_pytree(grad)[0] for grad in grads)
    assert_allclose(got, want, rtol=1e-9, atol=1e-10)


def test_damping_is_differentiable_and_may_be_traced():
    # oracle: closed form
    v, flat = vector()
    C = ROWS.operator(PARAMS)

    @jax.jit
    def quadratic(damping):
        return flat @ ravel_pytree(ok.Damped(C, damping).mv(v))[0]

    assert_allclose(jax.grad(quadratic)(0.1), flat @ flat, rtol=1e-12)


@pytest.mark.parametrize("solver", [lx.Cholesky(), lx.CG(rtol=1e-13, atol=1e-13)])
def test_lineax_solves_with_a_curvature_and_differentiates_it(solver):
    # oracle: dense
    rows = {"a": jr.normal(KEY, (2, 3)), "b": jnp.ones(2)}
    b = {"a": jnp.arange(3.0), "b": jnp.ones(())}

    def solve(rows, damping):
        x = lx.linear_solve(ok.Damped(ok.LowRank(rows), damping), b, solver).value
        return jnp.sum(x["a"] ** 2) + x["b"]

    def dense(rows, damping):
        U = jnp.concatenate([rows["a"], rows["b"][:, None]], axis=1)
        x = jnp.linalg.solve(U.T @ U + damping * jnp.eye(4), jnp.array([0.0, 1, 2, 1]))
        return jnp.sum(x[:3] ** 2) + x[3]

    got, want = (jax.jit(jax.grad(f, (0, 1)))(rows, 0.5) for f in (solve, dense))
    for g, w in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        assert_allclose(g, w, rtol=1e-8, atol=1e-10)


def test_damped_takes_any_symmetric_lineax_operator():
    # oracle: closed form
    matrix = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    C = ok.Damped(lx.MatrixLinearOperator(matrix, lx.positive_semidefinite_tag), 1.0)
    assert_allclose(C.as_matrix(), matrix + jnp.eye(2), rtol=1e-14)
    assert_allclose(C.diagonal(), [3.0, 4.0], rtol=1e-14)
    assert lx.is_positive_semidefinite(C)


def test_a_sum_with_an_unsymmetric_operator_is_lineaxs():
    # oracle: closed form
    C = ok.LowRank(jnp.array([[1.0, 2.0]]))
    A = lx.MatrixLinearOperator(jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    assert isinstance(C + A, lx.AddLinearOperator)
    assert_allclose((C + A).as_matrix(), [[1.0, 3.0], [2.0, 4.0]], rtol=1e-14)


def mixed_rows():
    """Rows in three dtypes, a scalar leaf and a None."""
    return {
        "half": jnp.array([[1.0, 2.0], [0.5, -1.0]], jnp.bfloat16),
        "none": None,
        "scalar": jnp.array([3.0, 1.0], jnp.float32),
        "wide": jnp.array([[1.5], [2.0]], float),
    }


@pytest.mark.parametrize(
    ("operator", "matrix"),
    [
        (lambda C: C, lambda C: C),
        (lambda C: ok.Damped(C, 0.5), lambda C: C + 0.5 * jnp.eye(4)),
        (lambda C: 2 * C + C, lambda C: 3 * C),
        (lambda C: ok.Masked(C, True), lambda C: C),
        (lambda C: C.block_diagonal(8), lambda C: blocks_of_mixed(C)),
        (lx.linearise, lambda C: C),
    ],
)
def test_leaves_of_different_dtypes_keep_them(operator, matrix):
    # oracle: dense; all numbers are exact in bfloat16
    flat = jnp.array([[1.0, 2.0, 3.0, 1.5], [0.5, -1.0, 1.0, 2.0]])
    C = operator(ok.LowRank(mixed_rows()))
    one = {k: None if v is None else v[0] for k, v in mixed_rows().items()}
    product = C.mv(one)
    assert jax.tree.map(lambda x: x.dtype, product) == jax.tree.map(
        lambda x: x.dtype, one
    )
    got = jnp.concatenate([x.ravel().astype(float) for x in jax.tree.leaves(product)])
    want = matrix(flat.T @ flat) @ flat[0]
    assert_allclose(got, want, rtol=2**-7)
    assert_allclose(got[2:], want[2:], rtol=1e-6)


def blocks_of_mixed(C):
    labels = np.array([0, 0, 1, 2])
    return jnp.where(labels[:, None] == labels, C, 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_hessian_of_narrow_params_is_near_the_wide_one(dtype):
    # oracle: the same in float64
    params = problems.mlp_params(jr.key(2), dtype)
    params["gain"] = params["gain"].astype(jnp.float32)
    wide = jax.tree.map(lambda p: p.astype(float), params)

    def loss(p, x):
        p = jax.tree.map(lambda leaf: leaf.astype(float), p)
        return jnp.mean(problems.mlp(p, x) ** 2)

    v = jax.tree.map(jnp.ones_like, params)
    got = ok.hessian(loss, params, INPUTS).mv(v)
    want = ok.hessian(loss, wide, INPUTS).mv(jax.tree.map(jnp.ones_like, wide))
    for g, w, p in zip(*map(jax.tree.leaves, (got, want, params)), strict=True):
        assert g.dtype == p.dtype
        assert_allclose(g.astype(float), w, rtol=2 * jnp.finfo(dtype).eps)


def test_an_empty_tree_has_an_empty_curvature():
    # oracle: identity
    C = ok.LowRank({"nothing": None})
    assert C.mv({"nothing": None}) == {"nothing": None}
    assert C.as_matrix().shape == (0, 0)


C2 = ok.LowRank(jnp.ones((1, 2)))
ASYMMETRIC = lx.MatrixLinearOperator(jnp.array([[0.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ok.Damped(C2, -1.0), ValueError, "`ok.Damped`.*damping >= 0"),
        (lambda: ok.Damped(C2, float("nan")), ValueError, "damping >= 0"),
        (lambda: ok.Damped(C2, np.float32(-1)), ValueError, "damping >= 0"),
        (lambda: ok.Damped(C2, jnp.ones(2)), ValueError, r"damping of shape \(\)"),
        (lambda: ok.Damped(C2, "small"), TypeError, "needs a number"),
        (lambda: ok.Damped(ASYMMETRIC, 1.0), ValueError, "symmetric_tag"),
        (lambda: C2 * jnp.ones(2), ValueError, r"`C \* a` needs a of shape \(\)"),
        (lambda: 1j * C2, TypeError, r"`C \* a` needs a real a, got complex"),
        (
            lambda: C2 + ok.LowRank(jnp.ones((1, 3))),
            ValueError,
            r"`C1 \+ C2` needs C2's params in the shape of C1's, got \(3,\)",
        ),
        (lambda: ok.Masked(C2, {"a": True}), ValueError, "`ok.Masked`.*prefix"),
        (lambda: ok.Masked(C2, jnp.array([True])), ValueError, r"\(\) or \(2,\)"),
        (lambda: ok.Masked(C2, jnp.ones(2)), TypeError, "`ok.Masked`.*booleans"),
    ],
)
def test_mistakes_raise_at_construction(call, error, match):
    # oracle: none, the messages
    with pytest.raises(error, match=match):
        call()


MADE_BY = {
    "ok.hessian": lambda: ok.hessian(jnp.sum, jnp.ones(2)),
    "ok.gauss_newton": lambda: ok.gauss_newton(
        jnp.multiply, ok.SquaredError(), jnp.ones(2), jnp.ones(2)
    ),
    "ok.LowRank": lambda: C2,
    "ok.BlockLowRank": lambda: C2.block_diagonal(1),
    "ok.Damped": lambda: ok.Damped(C2, 1.0),
    "ok.Masked": lambda: ok.Masked(C2, True),
    "C1 + C2": lambda: C2 + C2,
    "C * a": lambda: -C2,
    "ok.invert": lambda: ok.invert(C2, ok.Woodbury(), damping=1.0),
}


@pytest.mark.parametrize("maker", MADE_BY)
def test_an_error_names_the_call_that_made_the_operator(maker):
    # oracle: none, the messages
    C = MADE_BY[maker]()
    with pytest.raises(ValueError, match=re.escape(f"`{maker}(...).mv` needs vector")):
        C.mv(jnp.ones(3))
    if isinstance(C, ok.Inverse):
        with pytest.raises(ValueError, match=r"`ok.invert\(...\).solve` needs vector"):
            C.solve(jnp.ones(3))


def test_an_operator_of_ones_own_is_named_by_its_class():
    # oracle: none, the message
    class Identity(ok.AbstractCurvature):
        is_psd: ClassVar[bool] = True

        def product(self, vector):
            return vector

        def in_structure(self):
            return jax.ShapeDtypeStruct((2,), jnp.result_type(float))

        def diagonal(self):
            return jnp.ones(2)

    assert_allclose((Identity() + C2).as_matrix(), [[2.0, 1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"`Identity\(...\).mv` needs vector"):
        Identity().mv(jnp.ones(3))


@pytest.mark.parametrize("twins", BASIC.values(), ids=BASIC)
@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda v: {"other": v["gain"]}, ValueError, "structure"),
        (lambda v: v | {"gain": jnp.ones(2)}, ValueError, "shape"),
        (lambda v: v | {"gain": jnp.bfloat16(1)}, TypeError, "cast_like"),
    ],
)
def test_a_vector_unlike_the_params_raises(twins, spoil, error, match):
    # oracle: none, the messages
    with pytest.raises(error, match=match):
        twins.operator(PARAMS).mv(spoil(vector()[0]))


@pytest.mark.parametrize("bad", [jnp.arange(3), jnp.ones(3, complex)])
def test_params_that_are_not_real_floating_raise(bad):
    # oracle: none, the messages
    def loss(p):
        return jnp.sum(jnp.abs(p) ** 2)

    for call in (
        lambda: ok.hessian(loss, bad),
        lambda: ok.hvp(loss, bad, bad),
        lambda: ok.value_grad_and_hvp(loss)(bad, bad),
        lambda: ok.gauss_newton(jnp.multiply, loss, bad, jnp.ones(3)),
        lambda: ok.empirical_fisher(loss, bad, jnp.ones(3)),
        lambda: ok.LowRank(bad),
        lambda: ok.BlockLowRank(bad, 2),
        lambda: ok.value_grad_and_diag(loss)(bad, key=KEY),
    ):
        with pytest.raises(TypeError, match="real floating leaves"):
            call()


def test_gradients_reach_the_leaves_of_an_operator():
    # oracle: closed form, d/dU ½‖Ux‖² = (Ux) xᵀ
    U, x = jr.normal(KEY, (2, 3)), jnp.array([1.0, 2.0, 3.0])
    grad = eqx.filter_grad(lambda C: x @ C.mv(x) / 2)(ok.LowRank(U))
    assert_allclose(grad.rows, jnp.outer(U @ x, x), rtol=1e-12)
