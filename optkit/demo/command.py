"""`python -m optkit`: trains a small network on real digits and compares optimizers."""

import argparse
import contextlib
import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.random as jr
from rich.console import Console

from . import cleaning_command, distributed
from .data import digits
from .optimizers import OPTIMIZERS
from .progress import add_bar, progress_bar
from .results import DEFAULT_FOLDER, as_table, claim_folder, save, summarize
from .terminal import (
    INTERRUPTED,
    PROG,
    Parser,
    held_interrupt,
    make_parser,
    read_seed,
    whole_number,
)
from .training import Run, train

STEPS, SEEDS = 2000, 5
QUICK_STEPS, QUICK_SEEDS = 200, 2
COMMANDS = {"cleaning": cleaning_command.main, "distributed": distributed.main}

DESCRIPTION = """\
Compares optimizers on real handwritten digits. Each one trains a small network
on 4,000 digits, with several seeds side by side, and is tested on 1,000 others.
Prints a table, and writes it to a folder together with the learning curves.
Nothing is downloaded. Ctrl-C stops the run and keeps the finished optimizers.
"""
EPILOG = f"""\
optimizers: {", ".join(OPTIMIZERS)}

example:
  {PROG} --optimizers adan --steps 500 --out my-run

other commands (each has its own --help):
  {PROG} cleaning       finds wrong labels by bilevel optimization
  {PROG} distributed    trains on several processes
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains with each optimizer, prints the table, writes the table and the curves.

    Args:
        argv: The command line without the program's name. Default: `sys.argv[1:]`.

    Returns:
        The exit code: 0, or 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    parser = _make_parser()
    options = parser.parse_args(words)
    names = _split_names(options.optimizers, parser)
    try:
        folder = claim_folder(options.out)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    runs: dict[str, Run] = {}

    def stop() -> None:
        missing = ", ".join(name for name in names if name not in runs)
        print(f"Stopped by Ctrl-C; not finished: {missing}.", file=sys.stderr)
        _conclude(runs, folder)

    try:
        _train_each(names, options, runs, stop)
    except KeyboardInterrupt:
        stop()
        return INTERRUPTED
    _conclude(runs, folder)
    return 0


def _train_each(
    names: list[str],
    options: argparse.Namespace,
    runs: dict[str, Run],
    stop: Callable[[], None],
) -> None:
    """Fills `runs` one by one, so that Ctrl-C keeps the finished ones."""
    default = (QUICK_STEPS, QUICK_SEEDS) if options.quick else (STEPS, SEEDS)
    steps, num_seeds = options.steps or default[0], default[1]
    data = digits()
    with held_interrupt(stop) as check, progress_bar(Console(stderr=True)) as progress:
        for name in names:
            check()
            bar = add_bar(progress, name.ljust(max(map(len, names))), steps)

            def report(step: int, *values: float, bar: Callable[..., None] = bar):
                bar(step, *values)
                if step < steps:  # after the last step, keep the run
                    check()

            runs[name] = train(
                OPTIMIZERS[name](steps),
                data,
                key=jr.key(options.seed),
                steps=steps,
                num_seeds=num_seeds,
                report=report,
            )


def _conclude(runs: dict[str, Run], folder: Path) -> None:
    """Prints and writes the finished runs; without any, removes the empty folder."""
    if not runs:
        with contextlib.suppress(OSError):  # the user's own folder may hold files
            folder.rmdir()
        print("No optimizer finished: nothing was written.")
        return
    Console().print(as_table(summarize(runs)))
    print("Wrote", " and ".join(map(str, save(runs, folder))))


def _make_parser() -> Parser:
    parser = make_parser(PROG, DESCRIPTION, EPILOG)
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to write the table and the curves; existing results are never "
        f"overwritten (default: {DEFAULT_FOLDER}, or the next free one of "
        f"{DEFAULT_FOLDER}-2, {DEFAULT_FOLDER}-3, ...)",
    )
    parser.add_argument(
        "--seed",
        type=read_seed,
        default=0,
        help="seed of the initial weights and the batches; the train/test split is "
        "always the same (default: 0)",
    )
    parser.add_argument(
        "--steps",
        type=whole_number(1, 10**6),
        help=f"steps of each optimizer (default: {STEPS}, with --quick {QUICK_STEPS})",
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=list(OPTIMIZERS),
        metavar="NAME",
        help="which optimizers to run, in this order, separated by spaces or commas "
        "(default: all)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a first look in seconds: {QUICK_STEPS} steps and {QUICK_SEEDS} seeds "
        f"instead of {SEEDS}",
    )
    return parser


def _split_names(words: list[str], parser: Parser) -> list[str]:
    """Splits the names at spaces and commas, and refuses unknown and repeated ones."""
    names = " ".join(words).replace(",", " ").split()
    option, known = "argument --optimizers:", ", ".join(OPTIMIZERS)
    if not names:
        parser.error(f"{option} needs a name; there are {known}")
    for i, name in enumerate(names):
        if name not in OPTIMIZERS:
            near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            parser.error(f"{option} unknown name {name!r}; {hint}there are {known}")
        if name in names[:i]:
            parser.error(f"{option} {name} is given twice")
    return names
