"""`python -m optkit cleaning`: finds wrong labels, by several bilevel methods."""

import contextlib
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Bool
from rich.console import Console

from .cleaners import CLEANERS
from .cleaning import NUM_TRAIN, Cleaning, Task, clean, corrupted, judge
from .cleaning_results import (
    CSV_NAME,
    DEFAULT_FOLDER,
    PNG_NAME,
    as_table,
    save,
    summarize,
)
from .data import Digits, digits
from .progress import add_bar, progress_bar
from .results import claim_folder

SEEDS, QUICK_SEEDS, QUICK_STEPS = 3, 2, 3
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

Interrupts = Callable[[], AbstractContextManager[Callable[[], None]]]
"""A context that holds Ctrl-C back, and gives what raises it."""

DESCRIPTION = """\
Draws half of the labels of 3,000 real handwritten digits anew, and finds out
which are wrong: a weight for each of them, learnt by bilevel optimization so
that a linear classifier trained with them does well on 1,000 clean digits.
Prints a table, writes it with a picture of the lowest-weighted digits.
"""
EPILOG = f"methods: {', '.join(CLEANERS)}"


def main(
    argv: Sequence[str],
    parser: ArgumentParser,
    seed: Callable[[str], int],
    interrupts: Interrupts,
) -> int:
    """Cleans with every method, prints the table, writes table and picture.

    Args:
        argv: the command line after `cleaning`.
        parser: still without options.
        seed: what reads the option of that name.
        interrupts: what holds Ctrl-C back.

    Returns:
        The exit code: 0, or 130 if Ctrl-C cut the run short.
    """
    _add_options(parser, seed)
    options = parser.parse_args(argv)
    try:
        folder = claim_folder(options.out, DEFAULT_FOLDER, (CSV_NAME, PNG_NAME))
    except OSError as error:
        parser.error(f"argument --out: {error}")
    data = digits()
    num_seeds = QUICK_SEEDS if options.quick else SEEDS
    # Steps were tuned with labels of keys 0 and 1: no seed draws those again.
    key = jr.fold_in(jr.key(options.seed), NUM_TRAIN)
    task, is_right = corrupted(data, key=key, num_seeds=num_seeds)
    runs: dict[str, Cleaning] = {}
    code = 0
    try:
        _clean_each(runs, task, is_right, data, options.quick, interrupts)
    except KeyboardInterrupt:
        code = INTERRUPTED
        missing = ", ".join(name for name in CLEANERS if name not in runs)
        print(f"Stopped by Ctrl-C; not finished: {missing}.", file=sys.stderr)
    _conclude(runs, folder, task, data)
    return code


def _add_options(parser: ArgumentParser, seed: Callable[[str], int]) -> None:
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where table and picture go; results there are never overwritten "
        f"(default: {DEFAULT_FOLDER}, or {DEFAULT_FOLDER}-2, ... if that exists)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the labels drawn anew (default: 0)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a look at the program, not at the methods: {QUICK_STEPS} steps, and "
        f"{QUICK_SEEDS} seeds instead of {SEEDS}",
    )


def _clean_each(
    runs: dict[str, Cleaning],
    task: Task,
    is_right: Bool[Array, "seeds n"],
    data: Digits,
    quick: bool,
    interrupts: Interrupts,
) -> None:
    """Fills `runs` one by one, so that an interrupt leaves the finished ones there."""
    ones = jnp.ones(task.labels.shape, jnp.float32)
    baselines = {"all one": ones, "the truth": is_right.astype(jnp.float32)}
    with interrupts() as check, progress_bar(Console(stderr=True)) as progress:
        for name, weights in baselines.items():
            check()
            start = time.perf_counter()
            runs[name] = judge(weights, task, is_right, data.test, start=start)
        for name, (solver, full) in CLEANERS.items():
            check()
            steps = QUICK_STEPS if quick else full
            bar = add_bar(progress, name.ljust(max(map(len, CLEANERS))), steps)

            def report(step: int, *values: float, bar=bar, steps=steps) -> None:
                bar(step, *values)
                if step < steps:  # after the last step it is as good as finished
                    check()

            runs[name] = clean(
                solver, task, is_right, data.test, steps=steps, report=report
            )


def _conclude(
    runs: dict[str, Cleaning], folder: Path, task: Task, data: Digits
) -> None:
    """Prints and writes the finished runs; without one, leaves no empty folder."""
    if not runs:
        with contextlib.suppress(OSError):  # the user's own folder may hold files
            folder.rmdir()
        print("No method finished: nothing was written.")
        return
    Console().print(as_table(summarize(runs)))
    given, true = np.asarray(task.labels[0]), np.asarray(data.train.labels)
    files = save(runs, folder, np.asarray(task.images), given, true[: len(given)])
    print("Wrote", " and ".join(map(str, files)))
