"""Many devices: every array is split like its parameter, and nothing is gathered.

The oracle is the same program on one device. The traffic is read from the program that
XLA compiled: its collective operations with their shapes and bytes. `test_contract.py`
tests every optimizer on meshes with one axis.
"""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from precision import assert_allclose

import optkit as ok
from optkit.demo import plan
from optkit.demo.hlo import collectives, total_bytes

FAST = {"xla_backend_optimization_level": 0}  # takes longer to compile than to run
WINDOW = 3
EXAMPLES = jnp.asarray(np.random.default_rng(0).normal(size=(16, 24)))
PARAMS = {
    "w1": jr.normal(jr.key(1), (16, 32)) / 4,
    "b1": jnp.zeros(32),
    "w2": jr.normal(jr.key(2), (32, 8)) / 6,
    "b2": jnp.zeros(8),
}
TENSOR = {"w1": P(None, "model"), "b1": P("model"), "w2": P("model"), "b2": P()}
FULLY = {"w1": P("data"), "b1": P("data"), "w2": P("data"), "b2": P("data")}
MESHES = {
    "fully sharded": ((8,), ("data",), AxisType.Auto, FULLY),
    "data and tensor": ((2, 4), ("data", "model"), AxisType.Explicit, TENSOR),
}
OPTIMIZERS = {
    "adan": ok.optim.adan(0.01, weight_decay=0.1),
    "adahessian": ok.optim.adahessian(0.01, eps=1e-2, average=ok.optim.average_rows),
    "hutchinson": ok.optim.with_hutchinson(
        ok.optim.adahessian(0.01, eps=1e-2), key=jr.key(3), update_interval=2
    ),
    "sophia": ok.optim.sophia(0.01, gamma=1.0, update_interval=2),
    "mfac": ok.optim.mfac(0.01, WINDOW, 0.1, momentum=0.5),
}


def network_loss(params, examples, multiply=jnp.matmul):
    """Squared error of a tanh network; `multiply` sums over the split units."""
    inputs, targets = examples[:, :16], examples[:, 16:]
    hidden = jnp.tanh(inputs @ params["w1"] + params["b1"])
    return jnp.mean((multiply(hidden, params["w2"]) + params["b2"] - targets) ** 2)


def loss_on(name):
    """The loss as a user would write it for that mesh."""
    if name == "data and tensor":
        summed = functools.partial(jnp.matmul, out_sharding=P("data", None))
        return functools.partial(network_loss, multiply=summed)
    if name == "fully sharded":
        whole = lambda w: lax.with_sharding_constraint(w, P())  # noqa: E731
        return lambda params, x: network_loss(jax.tree.map(whole, params), x)
    return network_loss


def coupled(params):
    """A loss with a non-diagonal Hessian, whose estimate depends on the probes."""
    return sum(jnp.sum(jnp.cos(p)) for p in jax.tree.leaves(params)) ** 2


def update_all(params, states, grads, diag):
    """One update of each optimizer, for the same params and the same gradient."""
    updates, extra = {}, {"hessian_diag": diag}
    for name, tx in OPTIMIZERS.items():
        given = extra if name in ("adahessian", "sophia") else {}
        given = {"value_fn": coupled} if name == "hutchinson" else given
        updates[name], states[name] = tx.update(grads, states[name], params, **given)
    return optax.apply_updates(params, updates["adan"]), states, updates


def train(loss, params, examples):
    """Takes three steps of Adan; the other optimizers compute their updates as well.

    Returns the programs of the gradient and of the updates, and the last results.
    """
    states = {name: tx.init(params) for name, tx in OPTIMIZERS.items()}
    slopes = jax.jit(ok.value_grad_and_diag(loss), compiler_options=FAST)
    update = jax.jit(update_all, compiler_options=FAST)
    _, grads, diag = slopes(params, examples, key=jr.key(0))
    programs = (
        slopes.lower(params, examples, key=jr.key(0)).compile(),
        update.lower(params, states, grads, diag).compile(),
    )
    for i in range(3):
        _, grads, diag = slopes(params, examples, key=jr.key(i))
        params, states, updates = update(params, states, grads, diag)
    return programs, (params, states, updates, diag)


@pytest.fixture(scope="module")
def on_one_device():
    with jax.numpy_dtype_promotion("standard"):
        return train(network_loss, PARAMS, EXAMPLES)[1]


@pytest.mark.parametrize("name", MESHES)
@pytest.mark.usefixtures("standard_promotion")
def test_states_and_updates_stay_sharded_and_no_update_gathers(name, on_one_device):
    """Oracle: one device, with the same probes; the text of the compiled programs."""
    shape, axes, kind, specs = MESHES[name]
    mesh = jax.make_mesh(shape, axes, (kind,) * len(axes))
    with jax.set_mesh(mesh):
        shardings = {leaf: NamedSharding(mesh, spec) for leaf, spec in specs.items()}
        params = jax.device_put(PARAMS, shardings)
        examples = jax.device_put(EXAMPLES, NamedSharding(mesh, P("data")))
        programs, found = train(loss_on(name), params, examples)
    assert_same(found, on_one_device)
    assert_sharded(found[:3], mesh, specs)
    slopes, update = (collectives(program.as_text()) for program in programs)
    if name != "fully sharded":  # where the loss gathers weights
        assert {each.operation for each in slopes} == {"all-reduce"}
    # Rows of K and scalars of each leaf; random words at the edge of a shard; the sums
    # of `ok.optim.average_rows`, of the 512 and 256 entries of the weights 32 and 8.
    assert {each.operation for each in update} <= {"all-reduce", "collective-permute"}
    sizes = [math.prod(dims(shape)) for each in update for shape in each.shapes]
    assert max(sizes) <= 32
    assert WINDOW in sizes


def dims(shape):
    """The axes of "f64[2,3]"."""
    return [int(n) for n in shape.split("[")[1].rstrip("]").split(",") if n]


def assert_same(found, expected):
    """Equal up to rounding, which ratios of small numbers magnify."""
    for leaf, like in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        assert_allclose(jax.device_get(leaf), like, rtol=1e-8, atol=1e-12)


def assert_sharded(found, mesh, specs):
    """Leaves below a parameter's name are split like it, and so are window rows."""
    seen = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        names = [getattr(entry, "key", None) for entry in path]
        (name,) = set(names) & set(specs) or {None}
        if name is None:
            continue
        spec = specs[name]
        if leaf.ndim > PARAMS[name].ndim:
            spec = P(None, *spec)
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), leaf.ndim), (
            path
        )
        seen += 1
    # Params; five updates; m, v, n, g of Adan; m, v of three; a diagonal; window, mean
    assert seen == 4 * (1 + 5 + 4 + 3 * 2 + 1 + 2)


# --- nested problems and implicit derivatives, on an explicit mesh

SCALE = jnp.linspace(1.0, 2.0, 16)
TARGET = jnp.sin(jnp.arange(16.0))


def lower(x, y, batch):
    """Strongly convex in y, with coupled entries."""
    near = 0.5 * jnp.sum(batch["scale"] * (y - x * batch["target"]) ** 2)
    return near + 0.05 * jnp.sum(y) ** 2 + 0.01 * jnp.sum(y**4)


def upper(x, y, batch):
    return 0.5 * jnp.sum((y - 1.0) ** 2) + 0.05 * jnp.sum(x**2)


def nested():
    """One solver of each kind."""
    sgd = {"outer": optax.sgd(0.05, momentum=0.9), "inner": optax.sgd(0.1)}
    implicit = functools.partial(ok.bilevel.hypergradient_descent, upper, lower, **sgd)
    cg = ok.bilevel.Implicit(ok.CG(rtol=1e-10), warm_start=True)
    sketched = ok.bilevel.Implicit(ok.Nystrom(4, key=jr.key(0)), 0.1)
    return {
        "f2sa": ok.bilevel.f2sa(upper, lower, **sgd, penalty=5.0, inner_steps=2),
        "soba": ok.bilevel.soba(upper, lower, **sgd),
        "saba": ok.bilevel.saba(upper, lower, **sgd, num_upper=2, num_lower=3),
        "cg": implicit(method=cg, inner_steps=2),
        "nystrom": implicit(method=sketched, inner_steps=2),
    }


def step_nested(solvers, states, batch):
    terms = ok.bilevel.Batches(
        upper_x=ok.bilevel.Term(jnp.array(1), batch),
        lower_x=ok.bilevel.Term(jnp.array(2), batch),
    )
    given = dict.fromkeys(solvers, batch) | {"saba": terms}
    return {name: s.step(states[name], given[name])[0] for name, s in solvers.items()}


def run_nested(x, y, batch):
    solvers = nested()
    states = {name: solver.init(x, y) for name, solver in solvers.items()}
    step = jax.jit(functools.partial(step_nested, solvers), compiler_options=FAST)
    compiled = step.lower(states, batch).compile()
    return compiled, step(step(states, batch), batch)


def derivatives(args, y0):
    """Gradients through a symmetric and a general solve."""

    def objective(y, args):
        return lower(jnp.ones((), float), y, args)

    def solve(y0, args):
        descend = lambda _, y: y - 0.2 * jax.grad(objective)(y, args)  # noqa: E731
        return lax.fori_loop(0, 100, descend, y0)

    minimum = ok.implicit_minimum(objective, solver=ok.CG(rtol=1e-12))(solve)
    root = ok.implicit_root(jax.grad(objective), solver=ok.GMRES(rtol=1e-12))(solve)
    slope = lambda f: jax.grad(lambda a: jnp.sum(jnp.sin(f(y0, a))))(args)  # noqa: E731
    return slope(minimum), slope(root)


@pytest.mark.parametrize("what", ["nested", "implicit"])
def test_bilevel_and_implicit_derivatives_stay_split_on_an_explicit_mesh(what):
    """Oracle: one device; the text of the compiled program."""
    zeros, batch = jnp.zeros(16), {"scale": SCALE, "target": TARGET}

    def run(zeros, batch):
        if what == "nested":
            return run_nested(jnp.ones_like(zeros), zeros, batch)
        slopes = jax.jit(derivatives, compiler_options=FAST)
        return slopes.lower(batch, zeros).compile(), slopes(batch, zeros)

    _, expected = run(zeros, batch)
    mesh = jax.make_mesh((8,), ("d",), (AxisType.Explicit,))
    split = NamedSharding(mesh, P("d"))
    with jax.set_mesh(mesh):
        compiled, found = run(*jax.device_put((zeros, batch), split))
    leaves = jax.tree.leaves(found)
    for leaf, like in zip(leaves, jax.tree.leaves(expected), strict=True):
        assert_allclose(jax.device_get(leaf), like, rtol=1e-8, atol=1e-10)
    vectors = [leaf for leaf in leaves if getattr(leaf, "shape", ()) == (16,)]
    assert len(vectors) == (4 * (3 + 1) + 2 + 1 if what == "nested" else 4)
    for leaf in vectors:
        assert leaf.sharding.is_equivalent_to(split, 1)
    tables = [leaf for leaf in leaves if leaf.ndim == 2 and leaf.shape[1] == 16]
    assert len(tables) == (2 * 5 if what == "nested" else 0)  # SABA's rows and means
    for leaf in tables:
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "d")), 2)
    exchanged = collectives(compiled.as_text())
    assert {each.operation for each in exchanged} == {"all-reduce"}


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_each_device_of_a_shard_map_may_solve_a_problem_of_its_own(axis_type):
    """Oracle: the same problems, one after the other on one device."""

    def run(batch):
        return derivatives(batch, jnp.zeros(2))

    batch = {"scale": SCALE, "target": TARGET}
    parts = jax.tree.map(lambda a: a.reshape(8, 2), batch)
    expected = jax.jit(lambda parts: lax.map(run, parts))(parts)
    mesh = jax.make_mesh((8,), ("d",), (axis_type,))
    mapped = jax.shard_map(
        run, mesh=mesh, in_specs=P("d"), out_specs=P("d"), check_vma=False
    )
    split = jax.device_put(batch, NamedSharding(mesh, P("d")))
    found = jax.jit(mapped)(split)
    for leaf, like in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert_allclose(jax.device_get(leaf), like.reshape(-1), rtol=1e-8, atol=1e-10)


FAILING_SOLVE = """
import jax, jax.numpy as jnp, optkit as ok
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((2,), ("d",), (AxisType.Auto,), devices=jax.devices()[:2])
a = jax.device_put(jnp.ones(4), NamedSharding(mesh, P("d")))
decorate = ok.implicit_fixed_point(lambda y, a: 4 * y - a, solver=ok.Neumann(8))
solve = decorate(lambda y0, a: a / 3)
assert jnp.all(jnp.isnan(jax.grad(lambda a: jnp.sum(solve(a, a)))(a)))
"""


def test_a_failed_solve_on_several_devices_can_be_told_to_give_nan():
    """Oracle: the exit code. By default, the devices that do not raise would hang."""
    command = [sys.executable, "-c", FAILING_SOLVE]
    env = os.environ | {"EQX_ON_ERROR": "nan"}
    subprocess.run(command, env=env, check=True, timeout=100)


# --- the plan of docs/scaling.md

TINY = (2, 16)


@pytest.mark.parametrize("name", ["Adan", "AdaHessian", "M-FAC, m = 16, bfloat16"])
def test_planned_bytes_are_those_of_the_arrays(name):
    """Oracle: the arrays on the first device."""
    job = plan.JOBS[name]()
    planned = plan.planned(job, 8, *TINY)
    assert planned == plan.measured(job, *TINY)
    quarter = plan.planned(job, 2, *TINY)
    assert quarter.params == 4 * planned.params


@pytest.fixture(scope="module")
def plain():
    return total_bytes(plan.exchanged(plan.JOBS["SGD, for comparison"](), *TINY)[0])


@pytest.mark.parametrize(
    ("name", "gathers", "reduces"),
    [("Adan", 1, 1), ("AdaHessian", 2, 3), ("M-FAC, m = 16, bfloat16", 1, 1)],
)
def test_what_an_optimizer_adds_to_the_traffic_of_a_gradient(
    name, gathers, reduces, plain
):
    """Oracle: plain SGD, whose loss gathers each layer twice and sums gradients."""
    found = total_bytes(plan.exchanged(plan.JOBS[name](), *TINY)[0])
    assert found["all-gather"] == gathers * plain["all-gather"]
    extra = found["all-reduce"] - reduces * plain["all-reduce"]
    assert abs(extra) < 0.1 * plain["all-reduce"]  # biases, rows of K and scalars
    assert found.keys() == plain.keys() == {"all-gather", "all-reduce"}
