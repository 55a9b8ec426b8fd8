"""What a user waits for: the import of the package, and the main command."""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from .peers import peer
from .report import Job, Result, Role, Row, Table, at_most

FIRST = "import jax, optax"
PEERS = ("jaxopt", "optimistix", "matfree.stochtrace")


def run_import(size: int, rounds: int) -> Result:
    """Seconds of `import optkit` in a fresh interpreter, after jax and optax."""
    del size
    modules: dict[str, Role] = {"optkit": "ours"}
    modules |= {name: "peer" for name in PEERS if peer(name) is not None}
    # The first round does not count: it writes the bytecode, which pip has already
    # done for installed packages.
    seconds = np.array(
        [[_import_seconds(name) for name in modules] for _ in range(rounds + 1)]
    )[1:]
    rows = [
        Row(name, role, 1e3 * float(np.median(seconds[:, j])))
        for j, (name, role) in enumerate(modules.items())
    ]
    table = Table(f"On top of `{FIRST}`", "", rows)
    target = at_most(
        0.5,
        rows[0].milliseconds / 1e3,
        f"`import optkit` adds less than 0.5 s to `{FIRST}`",
        "According to `python -X importtime`, a third of it is Equinox, a quarter is "
        "optkit's own modules, and the rest is Lineax and the imports of these two.",
    )
    return Result([table], [target])


def run_demo(size: int, rounds: int) -> Result:
    """Seconds of `python -m optkit` in a shell."""
    del size, rounds
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        words = [sys.executable, "-m", "optkit", "--out", f"{folder}/demo"]
        subprocess.run(words, check=True, capture_output=True)
        seconds = time.perf_counter() - start
    table = Table(
        "The main command", "", [Row("python -m optkit", "ours", 1e3 * seconds)]
    )
    target = at_most(90, seconds, "`python -m optkit` takes less than 90 s")
    return Result([table], [target])


def _import_seconds(module: str) -> float:
    code = (
        f"{FIRST}, time; start = time.perf_counter(); import {module}; "
        "print(time.perf_counter() - start)"
    )
    words = [sys.executable, "-W", "ignore", "-c", code]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=env)
    return float(done.stdout)


JOB_IMPORT = Job(
    title="Import",
    run=run_import,
    size=1,
    unit="package",
    rounds=3,
    reading=(
        "Each package is imported in a fresh interpreter. Most of the time of optkit "
        "is that of Equinox and Lineax."
    ),
)
JOB_DEMO = Job(
    title="The main command",
    run=run_demo,
    size=1,
    unit="command",
    is_long=True,
    reading=("Four optimizers, 2,000 steps and five seeds each, compilation included."),
)
