"""`python -m optkit`: trains a small network on real digits and compares optimizers."""

import argparse
import contextlib
import difflib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax.random as jr

try:
    from rich.console import Console

    from .demo import cleaning_command, distributed
    from .demo.data import digits
    from .demo.optimizers import OPTIMIZERS
    from .demo.progress import add_bar, progress_bar
    from .demo.results import as_table, claim_folder, save, summarize
    from .demo.training import Run, train
except ModuleNotFoundError as error:
    print(
        f'python -m optkit: error: {error}; run `pip install "optkit[demo]"` first',
        file=sys.stderr,
    )
    raise SystemExit(2) from None

PROG = "python -m optkit"
STEPS, SEEDS = 2000, 5
QUICK_STEPS, QUICK_SEEDS = 200, 2
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

DESCRIPTION = """\
Trains a small network on 4,000 real handwritten digits, once per optimizer
with several seeds side by side, and tests it on 1,000 others. Prints a table,
writes it with the learning curves. No download. Ctrl-C keeps what is finished.
"""
EPILOG = f"""\
optimizers: {", ".join(OPTIMIZERS)}
example:    {PROG} --optimizers adan --steps 500 --out my-run
also:       {PROG} cleaning      (finds wrong labels)
            {PROG} distributed   (trains on several processes)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, prints the table, writes table and curves.

    Args:
        argv: the command line, without the name of the program.

    Returns:
        The exit code: 0, or 130 if Ctrl-C cut the run short.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["cleaning"]:
        parser = _Parser(prog=f"{PROG} cleaning")
        return cleaning_command.main(
            words[1:], parser, _whole(0, 2**32 - 1), _held_interrupt
        )
    if words[:1] == ["distributed"]:
        parser = _Parser(prog=f"{PROG} distributed")
        return distributed.main(words[1:], parser, _whole)
    parser = _make_parser()
    options = parser.parse_args(words)
    names = _split_names(options.optimizers, parser)
    try:
        folder = claim_folder(options.out)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    runs: dict[str, Run] = {}
    code = 0
    try:
        _train_each(names, options, runs)
    except KeyboardInterrupt:
        code = INTERRUPTED
        missing = ", ".join(name for name in names if name not in runs)
        print(f"Stopped by Ctrl-C; not finished: {missing}.", file=sys.stderr)
    _conclude(runs, folder)
    return code


def _train_each(
    names: list[str], options: argparse.Namespace, runs: dict[str, Run]
) -> None:
    """Fills `runs` one by one, so that an interrupt leaves the finished ones there."""
    default = (QUICK_STEPS, QUICK_SEEDS) if options.quick else (STEPS, SEEDS)
    steps, num_seeds = options.steps or default[0], default[1]
    data = digits()
    with _held_interrupt() as check, progress_bar(Console(stderr=True)) as progress:
        for name in names:
            check()
            bar = add_bar(progress, name.ljust(max(map(len, names))), steps)

            def report(step: int, *values: float, bar: Callable[..., None] = bar):
                bar(step, *values)
                if step < steps:  # after the last step the run is as good as finished
                    check()

            runs[name] = train(
                OPTIMIZERS[name](steps),
                data,
                key=jr.key(options.seed),
                steps=steps,
                num_seeds=num_seeds,
                report=report,
            )


@contextlib.contextmanager
def _held_interrupt() -> Iterator[Callable[[], None]]:
    """Holds a first Ctrl-C back while XLA works; a second one ends at once.

    Raised while XLA compiles, it gets lost in a callback or crashes the interpreter.

    Yields:
        A function that raises the `KeyboardInterrupt`, if there is one.
    """
    pressed = False

    def hold(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, previous)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)


def _conclude(runs: dict[str, Run], folder: Path) -> None:
    """Prints and writes the finished runs; without one, leaves no empty folder."""
    if not runs:
        with contextlib.suppress(OSError):  # the user's own folder may hold files
            folder.rmdir()
        print("No optimizer finished: nothing was written.")
        return
    Console().print(as_table(summarize(runs)))
    print("Wrote", " and ".join(map(str, save(runs, folder))))


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help explains)\n")


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where table and curves go; results there are never overwritten "
        "(default: optkit-demo, or optkit-demo-2, ... if that exists)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, 2**32 - 1),
        default=0,
        help="of weights and batches; the split of the data is fixed (default: 0)",
    )
    parser.add_argument(
        "--steps",
        type=_whole(1, 10**6),
        help=f"updates per optimizer (default: {STEPS}, with --quick {QUICK_STEPS})",
    )
    parser.add_argument(
        "--optimizers",
        nargs="+",
        default=list(OPTIMIZERS),
        metavar="NAME",
        help="which, in which order; commas or spaces between them (default: all)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a look in seconds: {QUICK_STEPS} steps, and {QUICK_SEEDS} seeds "
        f"instead of {SEEDS}",
    )
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    """What reads an option that is a whole number from `low` to `high`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (number := int(text)) <= high:
                return number
        raise argparse.ArgumentTypeError(
            f"needs a whole number from {low} to {high}, got {text!r}"
        )

    return read


def _split_names(words: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """The names of the optimizers, each known and said once."""
    names = " ".join(words).replace(",", " ").split()
    option, known = "argument --optimizers:", ", ".join(OPTIMIZERS)
    if not names:
        parser.error(f"{option} needs a name; there are {known}")
    for i, name in enumerate(names):
        if name not in OPTIMIZERS:
            near = difflib.get_close_matches(name.lower(), OPTIMIZERS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            parser.error(f"{option} no {name!r} here; {hint}there are {known}")
        if name in names[:i]:
            parser.error(f"{option} {name} is there twice")
    return names


if __name__ == "__main__":
    sys.exit(main())
