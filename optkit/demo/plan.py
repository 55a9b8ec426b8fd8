"""What a large run costs on N devices, computed without these devices.

`python -m optkit.demo.plan docs/scaling.md` writes its tables between two marks of that
page. The bytes come from `jax.eval_shape` of `init` on an abstract mesh of N devices;
the traffic comes from a step compiled for 8 virtual devices.
"""

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

import optkit as ok

from .hlo import Collective, collectives, total_bytes
from .jobs import Halves, Job, by_diagonal, by_gradient

BILLION = (60, 4096)  # layers and width: 1.0e9 weights
TEN_MILLION = (10, 1024)
NUM_DEVICES = (8, 64, 512)
NUM_VIRTUAL = 8
BATCH_SIZE = 64
BEGIN, END = "<!-- plan: begin -->", "<!-- plan: end -->"
SPLIT, WHOLE = PartitionSpec(None, "devices"), PartitionSpec()
GIB = 2**30


class Sizes(NamedTuple):
    """Bytes on one device between two steps."""

    params: int
    state: int  # everything else that the optimizer keeps


def deep_loss(params: PyTree, batch: Any) -> Array:
    """Squared error of a deep network that gathers its layers one at a time."""

    @jax.checkpoint
    def layer(h: Array, part: PyTree) -> tuple[Array, None]:
        weight, bias = (jax.sharding.reshard(p, WHOLE) for p in part)
        return h + jnp.tanh(h @ weight + bias), None

    inputs, targets = batch
    h, _ = jax.lax.scan(layer, inputs, (params["weight"], params["bias"]))
    return jnp.mean((h - targets) ** 2)


def deep_f2sa() -> Job:
    """Learns a weight decay for each neuron."""

    def upper(x: Array, y: PyTree, batch: Halves) -> Array:
        del x
        return deep_loss(y, batch.validation)

    def lower(x: Array, y: PyTree, batch: Halves) -> Array:
        decay = jnp.exp(x) * jnp.mean(y["weight"] ** 2, axis=-1)
        return deep_loss(y, batch.train) + 1e-2 * jnp.sum(decay)

    sgd = optax.sgd(0.1)
    solver = ok.bilevel.f2sa(upper, lower, outer=sgd, inner=sgd, penalty=10.0)

    def init(params: PyTree) -> PyTree:
        return solver.init(jnp.zeros_like(params["bias"]), params)

    def step(state: PyTree, batch: Halves, key: Array) -> tuple[PyTree, Array]:
        del key
        state, info = solver.step(state, batch)
        return state, info.value

    return Job(init, step)


def _mfac(window: int, dtype: Any) -> Job:
    return by_gradient(ok.optim.mfac(0.1, window, 0.1, window_dtype=dtype), deep_loss)


JOBS: dict[str, Callable[[], Job]] = {
    "SGD, for comparison": lambda: by_gradient(optax.sgd(0.1), deep_loss),
    "Adam, for comparison": lambda: by_gradient(optax.adam(0.1), deep_loss),
    "Adan": lambda: by_gradient(ok.optim.adan(0.1), deep_loss),
    "Adan, `state_dtype=bfloat16`": lambda: by_gradient(
        ok.optim.adan(0.1, state_dtype=jnp.bfloat16), deep_loss
    ),
    "AdaHessian": lambda: by_diagonal(ok.optim.adahessian(0.1), deep_loss),
    "Sophia": lambda: by_diagonal(ok.optim.sophia(0.1), deep_loss),
    "M-FAC, m = 16": lambda: _mfac(16, None),
    "M-FAC, m = 16, bfloat16": lambda: _mfac(16, jnp.bfloat16),
    "M-FAC, m = 256, bfloat16": lambda: _mfac(256, jnp.bfloat16),
    "F2SA, one inner step": deep_f2sa,
}


def shapes(mesh: Any, layers: int, width: int) -> PyTree:
    """The params, every array split over the devices along its second axis."""
    split = NamedSharding(mesh, SPLIT)

    def one(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)

    return {"weight": one(layers, width, width), "bias": one(layers, width)}


def planned(job: Job, num_devices: int, layers: int, width: int) -> Sizes:
    """Bytes on one of `num_devices`, from the shardings that `init` chooses."""
    mesh = AbstractMesh((num_devices,), ("devices",), (AxisType.Explicit,))
    with jax.sharding.use_abstract_mesh(mesh):
        params = shapes(mesh, layers, width)
        state = jax.eval_shape(job.init, params)
    own = _bytes_of(params)
    return Sizes(own, _bytes_of(state) - own)


def measured(job: Job, layers: int, width: int) -> Sizes:
    """Bytes of the arrays that `init` makes on the first of this process's devices."""
    mesh = _virtual_mesh()

    def on_first(tree: PyTree) -> int:
        return sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.device == mesh.devices.flat[0]
        )

    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda p: jnp.zeros(p.shape, p.dtype, device=p.sharding),
            shapes(mesh, layers, width),
        )
        own = on_first(params)
        return Sizes(own, on_first(job.init(params)) - own)


def exchanged(job: Job, layers: int, width: int) -> tuple[list[Collective], int]:
    """The collective operations of a step on virtual devices, and its temporaries.

    Args:
        job: The training step.
        layers: Number of layers.
        width: Width of each layer.

    Returns:
        The compiled collectives, and the bytes that a step needs for temporaries on
        each device.
    """
    mesh = _virtual_mesh()
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    with jax.set_mesh(mesh):
        state = jax.eval_shape(job.init, shapes(mesh, layers, width))
        state = jax.tree.map(lambda leaf: _on(mesh, leaf), state)
        half = jax.ShapeDtypeStruct((BATCH_SIZE, width), jnp.float32, sharding=rows)
        batch = Halves((half, half), (half, half))  # pyright: ignore  # pairs of arrays
        fast = {"xla_backend_optimization_level": 0}  # the step is never run
        step = jax.jit(job.step, donate_argnums=0, compiler_options=fast)
        compiled = step.lower(state, batch, jr.key(0)).compile()
    temporaries = getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0)
    return collectives(compiled.as_text()), temporaries


def tables() -> str:
    """All tables, in Markdown."""
    jobs = {name: make() for name, make in JOBS.items()}
    layers, width = BILLION
    count = layers * (width**2 + width)
    lines = [
        f"Made by `python -m optkit.demo.plan docs/scaling.md` with jax "
        f"{jax.__version__}, for {layers} layers of width {width:,}: "
        f"{count:,} float32 parameters.",
        "",
        "GiB on each device between two steps, for the parameters and everything that "
        "the optimizer keeps:",
        "",
        _row("", *(f"{n} devices" for n in NUM_DEVICES), "state / params"),
        _row("---", *["--:"] * (len(NUM_DEVICES) + 1)),
    ]
    for name, job in jobs.items():
        sizes = [planned(job, n, *BILLION) for n in NUM_DEVICES]
        ratio = sizes[0].state / sizes[0].params
        lines.append(_row(name, *(_gib(sum(s)) for s in sizes), f"{ratio:.2f}"))
    lines += [
        "",
        f"One step with {BATCH_SIZE} examples on {NUM_VIRTUAL} devices, in GiB on "
        "each: the results of the collective operations, and XLA's temporaries:",
        "",
        _row("", "all-gather", "all-reduce", "other", "in branches", "temporaries"),
        _row("---", *["--:"] * 5),
    ]
    for name, job in jobs.items():
        found, temporaries = exchanged(job, *BILLION)
        totals = total_bytes(found)
        rare = sum(each.num_bytes * each.times for each in found if each.varies)
        by_kind = [totals.pop(kind, 0) for kind in ("all-gather", "all-reduce")]
        cells = [*by_kind, sum(totals.values()), rare, temporaries]
        lines.append(_row(name, *map(_gib, cells)))
    lines += [
        "",
        f"The plan against the real arrays: {TEN_MILLION[0]} layers of width "
        f"{TEN_MILLION[1]:,} on {NUM_VIRTUAL} virtual devices; bytes on the first one:",
        "",
        _row("", "planned", "measured"),
        _row("---", "--:", "--:"),
    ]
    for name, job in jobs.items():
        if "256" in name:  # this window does not fit on a laptop
            continue
        pair = planned(job, NUM_VIRTUAL, *TEN_MILLION), measured(job, *TEN_MILLION)
        lines.append(_row(name, *(f"{sum(sizes):,}" for sizes in pair)))
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Prints the tables, or writes them into a page.

    Args:
        argv: Empty, or the path of a page with the two marks.

    Returns:
        The exit code.
    """
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_VIRTUAL)
    text = tables()
    if not argv:
        print(text)
        return 0
    page = Path(argv[0])
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return 0


def _virtual_mesh() -> Any:
    kinds = (AxisType.Explicit,)
    devices = jax.devices()[:NUM_VIRTUAL]
    return jax.make_mesh((NUM_VIRTUAL,), ("devices",), kinds, devices=devices)


def _on(mesh: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The same array on the devices of a mesh."""
    spec = leaf.sharding.spec if leaf.sharding else WHOLE
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _bytes_of(tree: PyTree) -> int:
    """Bytes on each device; an array without a sharding is whole on every device."""

    def one(leaf: jax.ShapeDtypeStruct) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return leaf.dtype.itemsize * math.prod(shape)

    return sum(map(one, jax.tree.leaves(tree)))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _gib(count: float) -> str:
    """Three digits; a positive number below 1 MiB is shown as such."""
    if 0 < count < 2**20:
        return "< 0.001"
    return f"{count / GIB:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
