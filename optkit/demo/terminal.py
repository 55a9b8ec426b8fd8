"""What the commands share: how they read options and how they handle Ctrl-C."""

import argparse
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

PROG = "python -m optkit"
INTERRUPTED = 130  # the exit code that shells report after Ctrl-C


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def make_parser(prog: str, description: str, epilog: str = "") -> Parser:
    """Returns a parser whose help keeps the line breaks of its texts."""
    keeps_lines = argparse.RawDescriptionHelpFormatter
    return Parser(prog, None, description, epilog, formatter_class=keeps_lines)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Returns a reader for options that take a whole number from `low` to `high`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= (number := int(text)) <= high:
                return number
        raise argparse.ArgumentTypeError(
            f"needs a whole number from {low} to {high}, got {text!r}"
        )

    return read


read_seed = whole_number(0, 2**32 - 1)


@contextlib.contextmanager
def held_interrupt() -> Iterator[Callable[[], None]]:
    """Delays the first Ctrl-C until it is safe; a second one stops at once.

    A KeyboardInterrupt that arrives while XLA compiles is lost in a callback or crashes
    the interpreter.

    Yields:
        A function that raises `KeyboardInterrupt` if Ctrl-C has been pressed.
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
