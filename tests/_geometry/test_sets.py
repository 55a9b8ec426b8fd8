"""What all projections share: sets without points, and points split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from placed import placed
from precision import assert_allclose

import optkit as ok

ONES = jnp.ones(2)
ZERO, ONE, TWO = map(jnp.asarray, (0.0, 1.0, 2.0))
EMPTY = {  # name: (projection, arguments for which the set has no point)
    "two parallel lines": (
        ok.projections.affine_set,
        (ONES, jnp.ones((2, 2)), jnp.array([1.0, 2.0])),
    ),
    "half-spaces apart": (
        ok.projections.polyhedron,
        (ONES, jnp.array([[1.0, 0], [-1, 0], [0, 1]]), jnp.array([-1.0, -1, 9])),
    ),
    "a half-space and a line apart": (
        ok.projections.polyhedron,
        (ONES, jnp.array([[1.0, 0]]), -jnp.ones(1), jnp.array([[1.0, 0]]), jnp.ones(1)),
    ),
    "a total out of reach": (
        ok.projections.box_section,
        (ONES, ZERO, ONE, ONE, 3 * ONE),
    ),
    "bounds that cross": (ok.projections.box_section, (ONES, ONE, ZERO, ONE, ONE)),
    "a simplex of size -1": (
        lambda x, s: ok.projections.sparse_simplex(x, 1, s),
        (ONES, -ONE),
    ),
    "sums of two totals": (
        ok.projections.transport,
        (jnp.eye(2), ONES, jnp.array([1.0, 2.0])),
    ),
    "positive sums of two totals": (
        ok.projections.kl_transport,
        (jnp.eye(2), ONES, jnp.array([1.0, 2.0])),
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_set_has_nan_for_its_point_and_for_all_derivatives(name):
    """Oracle: by hand; both modes, in the point and in each part of the set."""
    project, args = EMPTY[name]
    every = range(len(args))

    def all_of_them(args):
        modes = (jax.jacfwd, jax.jacrev)
        jacobians = [mode(project, argnums=tuple(every))(*args) for mode in modes]
        return project(*args), jacobians

    for leaf in jax.tree.leaves(jax.jit(all_of_them)(args)):
        assert jnp.all(jnp.isnan(leaf))


def test_an_empty_set_of_a_batch_leaves_the_others_alone():
    """Oracle: one at a time."""
    G, h = jnp.array([[1.0, 0], [-1, 0]]), jnp.array([[1.0, 1], [-1, -1], [0, 0]])
    jacobian = jax.jit(jax.jacrev(ok.projections.polyhedron))
    found = jax.vmap(jacobian, (None, None, 0))(jnp.array([0.0, 3.0]), G, h)
    assert_allclose(found[0], np.eye(2))
    assert jnp.all(jnp.isnan(found[1]))
    assert_allclose(found[2], np.diag([0.0, 1.0]), atol=1e-15)


# --- many devices

RNG = np.random.default_rng(0)
ROWS = jnp.asarray(RNG.normal(size=(3, 8)))
VECTORS = {
    "second_order_cone": ok.projections.second_order_cone,
    "box_section": lambda x: ok.projections.box_section(x, -0.1, 1 + 0 * x, 1.0, 2.0),
    "sparse_simplex": lambda x: ok.projections.sparse_simplex(x, 3),
    "affine_set": lambda x: ok.projections.affine_set(x, ROWS, jnp.ones(3)),
    "polyhedron": lambda x: ok.projections.polyhedron(
        x, ROWS, jnp.ones(3), jnp.ones((1, 8)), jnp.zeros(1)
    ),
    "lasso": lambda x: ok.prox.lasso(x, 0.1),
    "group_lasso": lambda x: ok.prox.group_lasso(x, 0.1),
}
MATRICES = {
    "transport": lambda x: ok.projections.transport(x, jnp.ones(8), jnp.ones(8)),
    "kl_birkhoff": ok.projections.kl_birkhoff,
    "nuclear": lambda x: ok.prox.nuclear(x, 0.1),
}
VECTOR, MATRIX = jnp.asarray(RNG.normal(size=8)), jnp.asarray(RNG.normal(size=(8, 8)))


def points_and_slopes(vector, matrix):
    """Every projection, and the gradient of a function of it."""
    found = {}
    for x, table in ((vector, VECTORS), (matrix, MATRICES)):
        for name, f in table.items():
            slope = jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x)
            found[name] = f(x), slope
    return found


@placed
def test_a_point_may_be_split_over_devices(place):
    """Oracle: one device; on an explicit mesh, p is split like x."""
    expected = jax.jit(points_and_slopes)(VECTOR, MATRIX)
    with place.context():
        x = place((VECTOR, MATRIX), 0)
        found = jax.jit(points_and_slopes)(*x)
    for name, pair in found.items():
        for leaf, want in zip(pair, expected[name], strict=True):
            assert_allclose(jax.device_get(leaf), want, rtol=1e-9, atol=1e-11)
            if place.is_explicit:
                split = NamedSharding(place.mesh, P("d"))
                assert leaf.sharding.is_equivalent_to(split, leaf.ndim), name


@pytest.mark.parametrize("check_vma", [True, False])
def test_each_device_may_project_a_point_of_its_own(check_vma):
    """Oracle: the same points, one after the other on one device."""

    def run(x):
        found = points_and_slopes(x[0, 0], x[0])
        return jax.tree.map(lambda a: a[None], found)

    x = jnp.linspace(0.5, 2, 8)[:, None, None] * MATRIX[None]
    expected = jax.jit(lambda x: jax.lax.map(lambda x: run(x[None]), x))(x)
    mesh = jax.make_mesh((8,), ("d",), (AxisType.Auto,))
    split = {"in_specs": P("d"), "out_specs": P("d"), "check_vma": check_vma}
    found = jax.jit(jax.shard_map(run, mesh=mesh, **split))(x)
    for leaf, want in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        want = want.reshape(leaf.shape)
        assert_allclose(jax.device_get(leaf), want, rtol=1e-9, atol=1e-11, float32=1e-4)
