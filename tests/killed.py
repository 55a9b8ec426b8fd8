"""Kills training runs at random moments and resumes them.

    python tests/killed.py --kills 120           kills, resumes, counts what was lost
    python tests/killed.py --kills 120 --write   the same, and records it in killed.json
    python tests/killed.py --train FOLDER        the training run that is killed

One run steps all of `OPTIMIZERS` together, and all of `SOLVERS` with `ok.run`. Every
`EVERY` steps it writes one checkpoint to a temporary file, flushes it to disk and
renames it, so that a file with the final name is always complete.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax

import optkit as ok

NUM_STEPS, EVERY = 60, 4
KILLS_OF_ONE_RUN = 5
RECORD = Path(__file__).with_suffix(".json")

OPTIMIZERS = {
    "adan": ok.optim.adan(0.01, weight_decay=0.02),
    "adahessian": ok.optim.with_hutchinson(ok.optim.adahessian(0.05), key=jr.key(1)),
    "sophia": ok.optim.with_hutchinson(
        ok.optim.sophia(0.05, gamma=0.1, update_interval=2),
        key=jr.key(2),
        update_interval=2,
    ),
    "mfac": optax.chain(optax.clip_by_global_norm(1.0), ok.optim.mfac(0.01, 4, 0.1)),
    "accumulate": ok.optim.accumulate(ok.optim.adan(0.01), every=3, hessian_diag=False),
}


def upper(x: Any, y: Any, batch: Any) -> jax.Array:
    """The loss on other data."""
    return regression(y, batch)


def lower(x: Any, y: Any, batch: Any) -> jax.Array:
    """The loss with weight decay; x holds its strength for each leaf."""
    decay = [jnp.exp(s) * jnp.sum(w**2) for s, w in zip(x, leaves(y), strict=True)]
    return regression(y, batch) + sum(decay)


SOLVERS = {
    "f2sa": ok.bilevel.f2sa(
        upper, lower, outer=optax.adam(0.05), inner=optax.sgd(0.1), penalty=2.0
    ),
    "soba": ok.bilevel.soba(upper, lower, outer=optax.sgd(0.05), inner=optax.sgd(0.1)),
    "penalty": ok.bilevel.penalty(
        upper,
        lower,
        outer=optax.sgd(0.05),
        inner=optax.sgd(0.1),
        sigma=0.5,
        inner_steps=2,
    ),
}


class Training(NamedTuple):
    """What the next step needs, so what a checkpoint holds."""

    step: jax.Array  # also the position in the data: batch k is drawn from key and k
    key: jax.Array
    params: dict[str, Any]
    states: dict[str, Any]  # of the optimizers
    solvers: dict[str, Any]  # the states of the bilevel solvers


def leaves(params: Any) -> list[jax.Array]:
    """The weights in float32."""
    return [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(params)]


def regression(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """A tanh network with a bfloat16 and a None leaf."""
    bias, w, v = leaves(params)
    inputs, targets = batch
    return jnp.mean((jnp.tanh(inputs @ w + bias) @ v - targets) ** 2)


def make_params(key: jax.Array, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """Dict, tuple, None, and two dtypes."""
    w, v = jr.split(key)
    return {
        "bias": jnp.zeros(8, jnp.float32),
        "frozen": None,
        "weights": (jr.normal(w, (4, 8), jnp.float32), jr.normal(v, (8,), dtype)),
    }


@jax.jit
def start() -> Training:
    """A run before its first step."""
    params = {name: make_params(jr.key(i)) for i, name in enumerate(OPTIMIZERS)}
    states = {name: tx.init(params[name]) for name, tx in OPTIMIZERS.items()}
    strengths = jnp.full(3, -3.0, jnp.float32)
    weights = make_params(jr.key(9), jnp.float32)
    solvers = {name: s.init(strengths, weights) for name, s in SOLVERS.items()}
    return Training(jnp.zeros([], jnp.int32), jr.key(7), params, states, solvers)


def draw(key: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The batch of a step."""
    inputs = jr.normal(jr.fold_in(key, step), (16, 4), jnp.float32)
    return inputs, jnp.sin(jnp.sum(inputs, axis=1))


@jax.jit
def take_step(training: Training) -> Training:
    """One step of each optimizer."""
    batch = draw(training.key, training.step)

    def loss(params: Any) -> jax.Array:
        return regression(params, batch)

    params, states = {}, {}
    for name, tx in OPTIMIZERS.items():
        before = training.params[name]
        tx = optax.with_extra_args_support(tx)
        updates, states[name] = tx.update(
            jax.grad(loss)(before), training.states[name], before, value_fn=loss
        )
        params[name] = optax.apply_updates(before, updates)
    return training._replace(step=training.step + 1, params=params, states=states)


def batch_of(step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The batch of a step of the solvers. One function, so that a run compiles once."""
    return draw(jr.key(8), step)


def run_solvers(training: Training) -> Training:
    """`EVERY` steps of each bilevel solver."""
    solvers = {
        name: ok.run(solver, training.solvers[name], batch_of, EVERY, every=EVERY).state
        for name, solver in SOLVERS.items()
    }
    return training._replace(solvers=solvers)


# --- a light checkpoint


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed random key, which file formats do not know."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_data(tree: Any) -> Any:
    """The tree with typed keys as the integers they hold."""
    return jax.tree.map(lambda a: jr.key_data(a) if is_key(a) else a, tree)


def save(path: Path, tree: Any) -> None:
    """Writes a tree so that `path` is either the old file or the complete new one."""
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        eqx.tree_serialise_leaves(file, as_data(tree))
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)  # so that the new name is on disk, too
    os.fsync(folder)
    os.close(folder)


def restore(path: Path, like: Any) -> Any:
    """Reads a tree with the structure, dtypes and keys of `like`."""
    data = eqx.tree_deserialise_leaves(path, as_data(like))

    def typed(leaf: Any, like: Any) -> Any:
        return jr.wrap_key_data(leaf, impl=jr.key_impl(like)) if is_key(like) else leaf

    return jax.tree.map(typed, data, like)


def digest(tree: Any) -> str:
    """A hash of all bits."""
    found = hashlib.sha256()
    for leaf in jax.tree.leaves(as_data(tree)):
        found.update(np.asarray(leaf).tobytes())
    return found.hexdigest()


# --- the run that is killed


def train(folder: Path, say: Callable[[str], None]) -> Training:
    """Trains from the newest checkpoint in a folder, or from the start.

    Args:
        folder: where the checkpoint is read and written.
        say: called with each event, such as "step 12", before it happens.

    Returns:
        The finished run.
    """
    path, training = folder / "checkpoint.eqx", start()
    if path.exists():
        training = restore(path, training)
    say(f"resumed {int(training.step)}")
    for k in range(int(training.step), NUM_STEPS):
        say(f"step {k}")
        training = take_step(training)
        if (k + 1) % EVERY == 0:
            training = jax.block_until_ready(run_solvers(training))
            say(f"saving {k + 1}")
            save(path, training)
            say(f"saved {k + 1}")
    say(f"finished {digest(training)}")
    return training


# --- the process that kills it


class Tally(NamedTuple):
    """What became of the runs that were killed."""

    trainings: int  # finished runs
    kills: int
    resumes: int
    while_writing: int  # kills that left an unfinished file
    lost: int  # resumed before the last checkpoint, or ended with other bits


def kill_often(num_kills: int, seed: int, folder: Path) -> Tally:
    """Kills runs until there are this many kills, and compares how they end.

    Args:
        num_kills: the smallest number of kills.
        seed: of the random moments.
        folder: an empty folder.

    Returns:
        The counts.
    """
    chance = random.Random(seed)
    (folder / "whole").mkdir()
    *_, (_, expected) = _events(folder / "whole")
    trainings = kills = resumes = while_writing = lost = 0
    while kills < num_kills:
        home = folder / str(trainings)
        home.mkdir()
        saved, found = 0, ""
        for left in reversed(range(KILLS_OF_ONE_RUN + 1)):
            doomed = left > 0 and kills < num_kills
            until = _moment(chance, saved) if doomed else None
            for event, value in _events(home, until, chance):
                if event == "resumed":
                    resumes += int(value) > 0
                    lost += int(value) < saved
                elif event == "saved":
                    saved = int(value)
                elif event == "finished":
                    found = value
            if found:
                break
            kills += 1
            while_writing += (home / "checkpoint.unfinished").exists()
        trainings += 1
        lost += found != expected
        print(f"{trainings} trainings, {kills} kills, {lost} lost", file=sys.stderr)
    return Tally(trainings, kills, resumes, while_writing, lost)


def _moment(chance: random.Random, saved: int) -> tuple[str, str]:
    """An event not far ahead, half of the time one in which a file is written."""
    ahead = saved + chance.randrange(1, NUM_STEPS // 2)
    if chance.random() < 0.5:
        return "saving", str(min(NUM_STEPS, -(-ahead // EVERY) * EVERY))
    return "step", str(min(NUM_STEPS - 1, ahead))


def _events(
    home: Path,
    until: tuple[str, str] | None = None,
    chance: random.Random | None = None,
) -> Iterator[tuple[str, str]]:
    """The events of a new process, which is killed soon after `until`."""
    command = [sys.executable, __file__, "--train", str(home)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout as lines:
        for line in lines:
            event, value = line.split()
            yield event, value
            if (event, value) == until and chance is not None:
                time.sleep(chance.uniform(0, 0.004))
                child.kill()
    code = child.wait()
    assert code in {0, -9}, f"a run ended with code {code}"


def section() -> str:
    """The section of `docs/reliability.md`, from the recorded run."""
    record = json.loads(RECORD.read_text())
    names = ", ".join(f"`{name}`" for name in (*OPTIMIZERS, *SOLVERS))
    text = (
        f"A process trains with {names} together and writes a checkpoint every {EVERY} "
        f"steps. Another process ends it with SIGKILL at a random moment, half of the "
        f"time during a write, and starts it again, up to {KILLS_OF_ONE_RUN} times. At "
        f"the end, the bits of all params and states are compared with those of a run "
        f"that was not killed."
    )
    return f"""\
## Killed and resumed

{textwrap.fill(text, 88)}

| | |
|---|---:|
| kills | {record["kills"]} |
| ... during a write | {record["while_writing"]} |
| resumes | {record["resumes"]} |
| finished runs | {record["trainings"]} |
| runs that lost a checkpoint, or ended with other bits | {record["lost"]} |

Recorded by `python tests/killed.py --kills {record["asked"]} --write`; the tests repeat
a few kills. [Checkpoints](checkpoints.md) says what to save and how."""


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.train:
        train(options.train, lambda event: print(event, flush=True))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        tally = kill_often(options.kills, options.seed, Path(folder))
    print(tally)
    if options.write:
        record = tally._asdict() | {"asked": options.kills}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
