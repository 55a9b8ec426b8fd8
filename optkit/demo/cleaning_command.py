"""`python -m optkit cleaning`: finds wrong labels by several bilevel methods."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
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
from .terminal import INTERRUPTED, PROG, Parser, held_interrupt, make_parser, read_seed

SEEDS, QUICK_SEEDS, QUICK_STEPS = 3, 2, 3

DESCRIPTION = """\
Finds wrong labels by bilevel optimization. Half of the labels of 3,000 real
handwritten digits are replaced by random ones. Every digit then gets a weight,
learned so that a linear classifier trained with the weights does well on 1,000
clean digits. Prints a table, and writes it to a folder together with a picture
of the digits of lowest weight. Ctrl-C stops and keeps the finished methods.
"""
EPILOG = f"methods: {', '.join(CLEANERS)}"


def main(argv: Sequence[str]) -> int:
    """Runs every method, prints the table, writes the table and the picture.

    Args:
        argv: The command line after `cleaning`.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.
    """
    parser = _make_parser()
    options = parser.parse_args(argv)
    try:
        folder = claim_folder(options.out, DEFAULT_FOLDER, (CSV_NAME, PNG_NAME))
    except OSError as error:
        parser.error(f"argument --out: {error}")
    data = digits()
    num_seeds = QUICK_SEEDS if options.quick else SEEDS
    # The numbers of steps were tuned on the labels of keys 0 and 1. `fold_in` makes
    # sure that no seed draws those labels again.
    key = jr.fold_in(jr.key(options.seed), NUM_TRAIN)
    task, is_right = corrupted(data, key=key, num_seeds=num_seeds)
    runs: dict[str, Cleaning] = {}

    def stop() -> None:
        missing = ", ".join(name for name in CLEANERS if name not in runs)
        print(f"Stopped by Ctrl-C; not finished: {missing}.", file=sys.stderr)
        _conclude(runs, folder, task, data)

    try:
        with held_interrupt(stop) as check:
            _clean_each(runs, task, is_right, data, options.quick, check)
    except KeyboardInterrupt:
        stop()
        return INTERRUPTED
    _conclude(runs, folder, task, data)
    return 0


def _make_parser() -> Parser:
    parser = make_parser(f"{PROG} cleaning", DESCRIPTION, EPILOG)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write the table and the picture; existing results are never "
        f"overwritten (default: {DEFAULT_FOLDER}, or the next free one of "
        f"{DEFAULT_FOLDER}-2, {DEFAULT_FOLDER}-3, ...)",
    )
    parser.add_argument(
        "--seed",
        type=read_seed,
        default=0,
        help="seed of the random labels (default: 0)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"try the program in seconds: {QUICK_STEPS} steps and {QUICK_SEEDS} seeds "
        f"instead of {SEEDS}; too short to compare the methods",
    )
    return parser


def _clean_each(
    runs: dict[str, Cleaning],
    task: Task,
    is_right: Bool[Array, "seeds n"],
    data: Digits,
    quick: bool,
    check: Callable[[], None],
) -> None:
    """Fills `runs` one by one, so that Ctrl-C keeps the finished ones."""
    ones = jnp.ones(task.labels.shape, jnp.float32)
    baselines = {"all one": ones, "the truth": is_right.astype(jnp.float32)}
    with progress_bar(Console(stderr=True)) as progress:
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
                if step < steps:  # after the last step, keep the run
                    check()

            runs[name] = clean(
                solver, task, is_right, data.test, steps=steps, report=report
            )


def _conclude(
    runs: dict[str, Cleaning], folder: Path, task: Task, data: Digits
) -> None:
    """Prints and writes the finished runs; without any, removes the empty folder."""
    if not runs:
        with contextlib.suppress(OSError):  # the user's own folder may hold files
            folder.rmdir()
        print("No method finished: nothing was written.")
        return
    Console().print(as_table(summarize(runs)))
    given, true = np.asarray(task.labels[0]), np.asarray(data.train.labels)
    files = save(runs, folder, np.asarray(task.images), given, true[: len(given)])
    print("Wrote", " and ".join(map(str, files)))
