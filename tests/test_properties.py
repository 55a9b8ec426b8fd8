"""Properties that hold for every input, tried on random pytrees, dtypes and sizes.

Where a test names no oracle, the property itself is the oracle.
"""

import functools
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.random as jr
import lineax as lx
import numpy as np
import optax
import pytest
from properties import (
    EXAMPLES,
    IS_LONG,
    WIDE,
    eps,
    fill,
    flat,
    property_test,
    same_kind,
    seeds,
    sizes,
    trees,
)

import optkit as ok

pytestmark = pytest.mark.usefixtures("standard_promotion")

# --- optimizers

TRANSFORMS = {
    "adan": ok.optim.adan(0.1, weight_decay=0.1),
    "adahessian": ok.optim.adahessian(0.1, weight_decay=0.1),
    "sophia": ok.optim.sophia(0.1, weight_decay=0.1),
    "mfac": ok.optim.mfac(0.1, 2, 0.1, momentum=0.5),
    "decay": ok.optim.proximal_weight_decay(0.1, 0.1),
    "accumulate": ok.optim.accumulate(ok.optim.adan(0.1), 2),
    "hutchinson": ok.optim.with_hutchinson(ok.optim.adahessian(0.1), key=jr.key(0)),
}


def square(p: Any) -> jax.Array:
    """Half the squared norm, in float32 or wider."""
    terms = [jnp.sum(x.astype(float) ** 2) for x in jax.tree.leaves(p)]
    return 0.5 * sum(terms, jnp.zeros(()))


@functools.partial(jax.jit, static_argnums=0)
def two_steps(name: str, params: Any, grads: Any) -> Any:
    """Takes two steps; returns the update of the second and the state."""
    tx, extra = optax.with_extra_args_support(TRANSFORMS[name]), {}
    if name in {"adahessian", "sophia", "accumulate"}:
        extra["hessian_diag"] = jax.tree.map(jnp.ones_like, grads)
    if name == "hutchinson":
        extra["value_fn"] = square
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(grads, state, params, **extra)
    return updates, state


@property_test(
    name=st.sampled_from(list(TRANSFORMS)), like=trees(), seed=seeds(), size=sizes()
)
def test_transforms_keep_trees_and_are_finite(name, like, seed, size):
    """Finite inputs give finite updates, or NaN where a square overflows; never inf."""
    params, grads = fill(like, seed), fill(like, seed + 1, size)
    updates, state = two_steps(name, params, grads)
    assert same_kind(updates, params)
    again = jax.eval_shape(functools.partial(two_steps, name), params, grads)[1]
    assert same_kind(state, again)
    if size < 1e15:
        assert np.all(np.isfinite(flat(updates)))
    assert not np.any(np.isinf(flat(updates)))


@property_test(
    name=st.sampled_from(["adan", "adahessian", "sophia", "mfac"]),
    like=trees(WIDE),
    seed=seeds(),
    size=sizes(-9, 9),
)
def test_transforms_do_not_see_the_order_of_leaves(name, like, seed, size):
    """Oracle: the same leaves in a tuple, backwards."""
    params, grads = fill(like, seed), fill(like, seed + 1, size)
    backwards = [tuple(jax.tree.leaves(t)[::-1]) for t in (params, grads)]
    expected, _ = two_steps(name, params, grads)
    found, _ = two_steps(name, *backwards)
    rtol = 1e-3 if name == "mfac" else 4 * eps(like)
    for a, b in zip(found[::-1], jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol * np.max(np.abs(b), initial=0)
        )


@jax.jit
def adan_step(grads: Any) -> Any:
    """The first step, without eps."""
    tx = ok.optim.scale_by_adan(eps=0.0)
    return tx.update(grads, tx.init(grads))[0]


@property_test(like=trees(WIDE), seed=seeds(), power=st.integers(-30, 30))
def test_rescaled_gradients_give_the_same_adan_step(like, seed, power):
    """Without eps, a step does not depend on the unit of the loss."""
    grads = fill(like, seed)
    scaled = jax.tree.map(lambda g: g * jnp.asarray(2.0**power, g.dtype), grads)
    np.testing.assert_allclose(
        flat(adan_step(scaled)), flat(adan_step(grads)), rtol=4 * eps(like)
    )


HALVED = ok.optim.accumulate(optax.identity(), 2)
halved = jax.jit(HALVED.update)


@property_test(like=trees(), seed=seeds(), size=sizes(-20, 20))
def test_accumulated_gradients_are_averaged(like, seed, size):
    """Oracle: the mean of the two, in float64."""
    first, second = fill(like, seed, size), fill(like, seed + 1, size)
    state = HALVED.init(first)
    zeros, state = halved(first, state)
    updates, _ = halved(second, state)
    mean = (flat(first) + flat(second)) / 2
    assert not np.any(flat(zeros))
    assert same_kind(updates, first)
    least = max(float(jnp.finfo(x.dtype).tiny) for x in jax.tree.leaves(like))
    bound = eps(like) * (np.abs(mean) + least)
    assert np.all(np.abs(flat(updates) - mean) <= bound)


# --- curvature


def loss(p: Any, scale: Any) -> jax.Array:
    """A smooth loss that couples the leaves."""
    total = square(p)
    return scale * jnp.log1p(total) + 0.1 * total


def model(p: Any, x: Any) -> jax.Array:
    """A model with two outputs for each input."""
    return jnp.stack([jnp.sin(x * square(p)), x * square(p)], axis=-1)


def stacked(tree: Any, seed: int, count: int = 2) -> Any:
    """Rows with the structure of the tree."""
    rows = [fill(tree, seed + i) for i in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def curvature(kind: str, p: Any, rows: Any) -> Any:
    """A curvature at p."""
    xs = jnp.array([0.1, 0.2, 0.3])
    if kind == "hessian":
        return ok.hessian(loss, p, jnp.ones(()))
    if kind == "gauss_newton":
        return ok.gauss_newton(model, ok.SquaredError(), p, xs)
    if kind == "empirical_fisher":
        return ok.empirical_fisher(lambda p, x: jnp.sin(x * square(p)), p, xs)
    low_rank = ok.LowRank(rows)
    made = {
        "low_rank": low_rank,
        "blocks": low_rank.block_diagonal(2),
        "masked": ok.Masked(low_rank, jax.tree.map(lambda x: x > 0, p)),
        "sum": low_rank + 0.5 * ok.Damped(low_rank, 0.1),
    }
    return made[kind]


CURVATURES = ["hessian", "gauss_newton", "empirical_fisher"]
CURVATURES += ["low_rank", "blocks", "masked", "sum"]


@functools.partial(jax.jit, static_argnums=0)
def products(kind: str, p: Any, rows: Any, vectors: tuple[Any, Any], a: Any) -> Any:
    """C x, C y and C (x + a y)."""
    C, (x, y) = curvature(kind, p, rows), vectors
    both = jax.tree.map(lambda x, y: x + a.astype(y.dtype) * y, x, y)
    return C.mv(x), C.mv(y), C.mv(both)


@property_test(
    kind=st.sampled_from(CURVATURES), like=trees(), seed=seeds(), size=sizes(-2, 2)
)
def test_curvatures_are_linear_and_symmetric(kind, like, seed, size):
    """C(x + a y) = C x + a C y and yᵀC x = xᵀC y, to rounding of the narrowest leaf."""
    p, rows = fill(like, seed, 0.3), stacked(like, seed + 1)
    x, y = fill(like, seed + 5, size), fill(like, seed + 6, size)
    found = products(kind, p, rows, (x, y), jnp.asarray(0.5))
    assert all(same_kind(product, p) for product in found)
    Cx, Cy, both = map(flat, found)
    scale = np.linalg.norm(Cx) + np.linalg.norm(Cy)
    bound = 16 * eps(like) * max(flat(p).size, 1)
    size_of = np.linalg.norm(flat(x)) + np.linalg.norm(flat(y))
    weight = np.linalg.norm(flat(rows)) ** 2 + 4
    assert np.max(np.abs(both - Cx - 0.5 * Cy), initial=0) <= bound * (
        scale + weight * size_of
    )
    gap = abs(flat(y) @ Cx - flat(x) @ Cy)
    assert gap <= bound * size_of * (scale + weight * size_of)


@jax.jit
def diagonal_and_matrix(C: Any) -> Any:
    """The exact diagonal, and the dense matrix."""
    return C.diagonal(), C.as_matrix()


@property_test(
    kind=st.sampled_from(["low_rank", "blocks", "masked", "sum"]),
    like=trees(WIDE),
    seed=seeds(),
)
def test_curvatures_have_their_diagonal(kind, like, seed):
    """Oracle: the dense matrix."""
    C = curvature(kind, fill(like, seed), stacked(like, seed + 1))
    diagonal, matrix = diagonal_and_matrix(C)
    assert same_kind(diagonal, fill(like, seed))
    expected = np.diagonal(matrix)
    np.testing.assert_allclose(flat(diagonal), expected, rtol=1e-5, atol=1e-6)


@jax.jit
def estimates(p: Any, scale: Any, key: Any) -> Any:
    """Diagonal and trace of a multiple of I."""
    C = ok.hessian(lambda p, s: s * square(p), p, scale)
    diag = ok.hutchinson_diag(C, key=key, num_probes=2).mean
    return diag, ok.hutchinson_trace(C, key=key, num_probes=2).mean


@property_test(like=trees(), seed=seeds(), size=sizes(-4, 4))
def test_hutchinson_is_exact_for_a_diagonal_curvature(like, seed, size):
    """Oracle: the diagonal itself, whatever the signs."""
    p = fill(like, seed)
    diag, trace = estimates(p, jnp.asarray(size), jr.key(seed % 100))
    assert same_kind(diag, p)
    np.testing.assert_allclose(flat(diag), size, rtol=4 * eps(like))
    np.testing.assert_allclose(trace, size * flat(p).size, rtol=4 * eps(like))


@functools.partial(jax.jit, static_argnums=0)
def value_grads_diag(probes: int, p: Any, key: Any) -> Any:
    """The result of optkit, and that of `jax.value_and_grad`."""
    one = jnp.ones(())
    found = ok.value_grad_and_diag(loss)(p, one, key=key, num_probes=probes)
    return found, jax.value_and_grad(loss)(p, one)


@property_test(like=trees(), seed=seeds(), probes=st.sampled_from([1, 3]))
def test_value_grad_and_diag_keep_the_tree(like, seed, probes):
    """Oracle: `jax.value_and_grad`."""
    p = fill(like, seed, 0.3)
    found, expected = value_grads_diag(probes, p, jr.key(seed % 100))
    value, grads, diag = found
    assert same_kind(grads, p)
    assert same_kind(diag, p)
    assert np.all(np.isfinite(flat(diag)))
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    rtol = 8 * eps(like)
    np.testing.assert_allclose(flat(grads), flat(expected[1]), rtol=rtol, atol=1e-7)


# --- inverses

METHODS = {
    "cg": ok.CG(rtol=1e-4),
    "gmres": ok.GMRES(rtol=1e-4),
    "neumann": ok.Neumann(60),
    "nystrom": ok.Nystrom(3, key=jr.key(0)),
    "woodbury": ok.Woodbury(),
    "cholesky": lx.Cholesky(),
    "lu": lx.LU(),
}


@functools.partial(jax.jit, static_argnums=0)
def solved(name: str, rows: Any, damping: Any, b: Any) -> Any:
    """The solution x, whether the solve succeeded, and (C + λI) x."""
    C = ok.LowRank(rows)
    if name in {"cholesky", "lu"}:
        C = lx.TaggedLinearOperator(C, lx.positive_semidefinite_tag)
    P = ok.invert(C, METHODS[name], damping=damping)
    solution = P.solve(b)
    is_fine = solution.result == ok.RESULTS.successful
    return solution.value, is_fine, P.operator.mv(solution.value)


@property_test(
    name=st.sampled_from(list(METHODS)),
    like=trees(WIDE),
    seed=seeds(),
    damping=sizes(-3, 3),
    size=sizes(),
)
def test_inverses_invert_or_say_that_they_did_not(name, like, seed, damping, size):
    """(C + λI) P b = b to the stated tolerance, or the result is not successful."""
    rows, b = stacked(like, seed), fill(like, seed + 9, size)
    value, is_fine, product = solved(name, rows, jnp.asarray(damping), b)
    assert same_kind(value, b)
    if not is_fine:
        return
    gap = np.linalg.norm(flat(product) - flat(b)) / np.linalg.norm(flat(b))
    top = float(np.sum(flat(rows) ** 2))
    condition = (top + damping) / damping
    # A truncated Neumann series is not a failure; direct methods lose κ eps.
    cut = (1 - 1 / condition) ** 50 if name == "neumann" else 0
    assert gap <= 2e-4 + cut + 40 * eps(like) * condition, (gap, condition)


@property_test(
    name=st.sampled_from(["cg", "gmres", "neumann", "woodbury"]),
    like=trees(WIDE),
    seed=seeds(),
    power=st.integers(-90, 90),
)
def test_a_solve_does_not_see_the_scale_of_its_right_hand_side(name, like, seed, power):
    """Oracle: the solution of b, times a power of two."""
    rows, b = stacked(like, seed), fill(like, seed + 9)
    scaled = jax.tree.map(lambda x: x * jnp.asarray(2.0**power, x.dtype), b)
    one = jnp.ones(())
    expected, found = (solved(name, rows, one, x)[0] for x in (b, scaled))
    peak = np.max(np.abs(flat(expected)))
    np.testing.assert_allclose(
        flat(found) * 2.0**-power, flat(expected), rtol=0, atol=20 * eps(like) * peak
    )


@property_test(like=trees(WIDE), seed=seeds(), sparsity=st.floats(0, 0.9))
def test_pruned_weights_are_zero_and_as_many_as_asked(like, seed, sparsity):
    """Removed weights are zero, and there are as many as requested."""
    p = fill(like, seed)
    inverse = ok.invert(ok.LowRank(stacked(like, seed)), ok.Woodbury(), damping=1.0)
    pruned = ok.obs_prune(p, inverse, sparsity=sparsity)
    assert same_kind(pruned.params, p)
    kept = np.concatenate([np.ravel(k) for k in jax.tree.leaves(pruned.kept)])
    assert not np.any(flat(pruned.params)[~kept])
    removed = np.sum(~kept)
    assert removed <= sparsity * kept.size + 1e-9
    assert removed > sparsity * kept.size - 1


# --- proximal operators and projections

PROXES = {
    "lasso": (ok.prox.lasso, lambda y, s: s * np.sum(np.abs(y))),
    "ridge": (ok.prox.ridge, lambda y, s: 0.5 * s * np.sum(y**2)),
    "group_lasso": (ok.prox.group_lasso, lambda y, s: s * np.linalg.norm(y)),
    "elastic_net": (
        lambda v, s, t: ok.prox.elastic_net(v, s, s, t),
        lambda y, s: s * np.sum(np.abs(y)) + 0.5 * s * np.sum(y**2),
    ),
    "non_negative_lasso": (
        ok.prox.non_negative_lasso,
        lambda y, s: s * np.sum(y) if np.all(y >= 0) else np.inf,
    ),
    "non_negative_ridge": (
        ok.prox.non_negative_ridge,
        lambda y, s: 0.5 * s * np.sum(y**2) if np.all(y >= 0) else np.inf,
    ),
}


@functools.partial(jax.jit, static_argnums=0)
def prox(name: str, v: Any, strength: Any, step: Any) -> Any:
    """One prox."""
    return PROXES[name][0](v, strength, step)


prox_inputs = {
    "name": st.sampled_from(list(PROXES)),
    "like": trees(),
    "seed": seeds(),
    "size": sizes(),
    "strength": sizes(-4, 4),
}


@property_test(**prox_inputs)
def test_proxes_do_not_expand(name, like, seed, size, strength):
    """|prox(v) - prox(w)| <= |v - w|, in the tree's own dtypes."""
    v, w = fill(like, seed, size), fill(like, seed + 1, size)
    found = [prox(name, x, jnp.asarray(strength), jnp.ones(())) for x in (v, w)]
    assert same_kind(found[0], v)
    a, b = map(flat, found)
    x, y = flat(v), flat(w)
    assert np.all(np.isfinite(a))
    peak = max(np.max(np.abs(x)), np.max(np.abs(y)))
    gap, bound = np.linalg.norm((a - b) / peak), np.linalg.norm((x - y) / peak)
    assert gap <= bound + 8 * eps(like) * x.size if peak > 1e-37 else True


@property_test(**prox_inputs)
def test_proxes_minimise_their_objective(name, like, seed, size, strength):
    """½|y - v|² + r(y) is not smaller at nearby points, at 0, or at v."""
    v = fill(like, seed, size)
    y, x = flat(prox(name, v, jnp.asarray(strength), jnp.ones(()))), flat(v)
    unit = max(float(np.max(np.abs(x))), 1e-37)

    def objective(y: Any) -> float:
        return (
            0.5 * np.sum(((y - x) / unit) ** 2) + PROXES[name][1](y, strength) / unit**2
        )

    rng = np.random.default_rng(seed)
    rounding = 16 * eps(like) * (1 + objective(np.maximum(x, 0)) + objective(y))
    rivals = [np.zeros_like(y), np.maximum(x, 0), x]
    rivals += [y + 1e-2 * unit * rng.normal(size=y.shape) for _ in range(4)]
    for rival in rivals:
        assert objective(y) <= objective(rival) + rounding


PROJECTIONS = {
    "simplex": lambda x: ok.projections.box_section(x, 0.0, jnp.inf, 1.0, 1.0),
    "box_section": lambda x: ok.projections.box_section(x, -1.0, 1.0, 1.0, 0.5),
    "sparse_simplex": lambda x: ok.projections.sparse_simplex(x, 2),
    "second_order_cone": ok.projections.second_order_cone,
    "affine_set": lambda x: ok.projections.affine_set(
        x, jnp.arange(8.0, dtype=x.dtype).reshape(2, 4) % 3, jnp.ones(2, x.dtype)
    ),
    "polyhedron": lambda x: ok.projections.polyhedron(
        x, jnp.arange(8.0, dtype=x.dtype).reshape(2, 4) % 3, jnp.ones(2, x.dtype)
    ),
    "birkhoff": lambda x: ok.projections.birkhoff(x.reshape(2, 2)).ravel(),
    "kl_birkhoff": lambda x: ok.projections.kl_birkhoff(x.reshape(2, 2)).ravel(),
}


def violation(name: str, p: Any) -> float:
    """How far a point is from the set."""
    A = np.arange(8.0).reshape(2, 4) % 3
    if name == "second_order_cone":
        return max(np.linalg.norm(p[1:]) - p[0], 0.0)
    if name == "affine_set":
        return np.max(np.abs(A @ p - 1))
    if name == "polyhedron":
        return np.max(np.maximum(A @ p - 1, 0))
    if name in {"birkhoff", "kl_birkhoff"}:
        square = p.reshape(2, 2)
        sums = np.concatenate([square.sum(0), square.sum(1)])
        return max(np.max(np.abs(sums - 1)), np.max(-p))
    low, total = (-1.0, 0.5) if name == "box_section" else (0.0, 1.0)
    return max(abs(np.sum(p) - total), np.max(low - p))


@functools.partial(jax.jit, static_argnums=0)
def projected(name: str, x: Any) -> Any:
    """One projection."""
    return PROJECTIONS[name](x)


@property_test(
    name=st.sampled_from(list(PROJECTIONS)),
    dtype=st.sampled_from(WIDE if IS_LONG else WIDE[:1]),
    seed=seeds(),
    size=sizes(-30, 6),
)
def test_projections_are_feasible_idempotent_and_do_not_expand(name, dtype, seed, size):
    """In the set up to rounding, again after a second time, and nonexpansive."""
    rng = np.random.default_rng(seed)
    x, y = (jnp.asarray(size * rng.normal(size=4), dtype) for _ in range(2))
    p, q = projected(name, x), projected(name, y)
    assert p.dtype == x.dtype
    assert np.all(np.isfinite(p))
    ε = float(jnp.finfo(dtype).eps)
    tolerance = 60 * ε * (1 + max(np.linalg.norm(x), np.linalg.norm(y)))
    tolerance = max(tolerance, 4 * ε**0.5) if "birkhoff" in name else tolerance
    assert violation(name, np.float64(p)) <= tolerance
    if name == "kl_birkhoff":  # a KL projection is not a Euclidean one
        return
    np.testing.assert_allclose(projected(name, p), p, rtol=0, atol=tolerance)
    if name != "sparse_simplex":  # its set is not convex
        assert np.linalg.norm(p - q) <= np.linalg.norm(x - y) + tolerance


# --- implicit differentiation


def objective(y: Any, a: Any) -> jax.Array:
    """½ Σ w (y - a)² with a weight for each leaf."""
    total = jnp.zeros(())
    pairs = zip(jax.tree.leaves(y), jax.tree.leaves(a), strict=True)
    for i, (y, a) in enumerate(pairs):
        total += 0.5 * (i + 1) * jnp.sum((y - a).astype(float) ** 2)
    return total


def residual(y: Any, a: Any) -> Any:
    """A residual that is zero at a."""
    return jax.tree.map(lambda y, a: 2 * (y - a), y, a)


def halfway(y: Any, a: Any) -> Any:
    """A map with the fixed point a."""
    return jax.tree.map(lambda y, a: (y + a) / 2, y, a)


def exact(y0: Any, a: Any) -> Any:
    """The solution of all three problems."""
    return a


SOLVERS = {
    "minimum": ok.implicit_minimum(objective)(exact),
    "root": ok.implicit_root(residual)(exact),
    "fixed_point": ok.implicit_fixed_point(halfway)(exact),
}


@functools.partial(jax.jit, static_argnums=0)
def pulled(name: str, a: Any, w: Any) -> Any:
    """The vjp and the jvp of the solution in the direction w."""
    solve = functools.partial(SOLVERS[name], a)
    _, pull = jax.vjp(solve, a)
    return pull(w)[0], jax.jvp(solve, (a,), (w,))[1]


@property_test(
    name=st.sampled_from(list(SOLVERS)),
    like=trees(WIDE),
    seed=seeds(),
    size=sizes(),
    scale=sizes(-20, 20),
)
def test_derivatives_of_solutions_are_exact(name, like, seed, size, scale):
    """Oracle: dy/da = I, for any size of a and of the cotangent."""
    a, w = fill(like, seed, size), fill(like, seed + 1, scale)
    for found in pulled(name, a, w):
        assert same_kind(found, a)
        peak = np.max(np.abs(flat(w)))
        np.testing.assert_allclose(flat(found), flat(w), rtol=0, atol=2e-5 * peak)


@jax.jit
def accelerated(a: Any) -> Any:
    """The fixed point that Anderson finds, and whether it succeeded."""

    def mapping(y: Any, a: Any) -> Any:
        return jax.tree.map(lambda y, a: 0.5 * y + a, y, a)

    y, info = ok.solvers.anderson(mapping, jax.tree.map(jnp.zeros_like, a), a)
    return y, info.result == ok.RESULTS.successful


@property_test(like=trees(WIDE), seed=seeds(), size=sizes())
def test_anderson_finds_the_fixed_point_or_says_so(like, seed, size):
    """Oracle: y = 2a."""
    a = fill(like, seed, size)
    y, is_fine = accelerated(a)
    assert same_kind(y, a)
    assert is_fine
    peak = np.max(np.abs(flat(a)))
    np.testing.assert_allclose(flat(y), 2 * flat(a), rtol=0, atol=1e-4 * peak)


def test_every_property_is_in_the_table():
    """Oracle: the names in this file."""
    names = {n.removeprefix("test_") for n in globals() if n.startswith("test_")}
    assert names - {"every_property_is_in_the_table"} == set(EXAMPLES)
