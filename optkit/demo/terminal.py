"""What the commands share: how they read options and how they handle Ctrl-C."""

import argparse
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

PROG = "python -m optkit"
INTERRUPTED = 130  # the exit code that shells report after Ctrl-C
GRACE = 0.5  # seconds


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
def held_interrupt(stop: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Delays the first Ctrl-C until it is safe; a second one stops at once.

    A KeyboardInterrupt that arrives while XLA compiles is lost in a callback or crashes
    the interpreter. Python runs no signal handler before the compiler returns, so a
    thread waits for Ctrl-C. If the program does not react in `GRACE` seconds, the
    thread calls `stop` and ends the process.

    Args:
        stop: says what was done, and saves what can be saved.

    Yields:
        A function that raises `KeyboardInterrupt` if Ctrl-C has been pressed.
    """
    pressed, turn = threading.Event(), threading.Lock()  # only one of us stops

    def hold(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    def check() -> None:
        if pressed.is_set():
            turn.acquire()
            raise KeyboardInterrupt

    def watch() -> None:
        with reader:
            if not reader.recv(1):  # closed
                return
        time.sleep(GRACE)
        if turn.acquire(blocking=False):
            stop()
            sys.stdout.flush()
            os._exit(INTERRUPTED)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=watch, daemon=True).start()
    previous_fd = signal.set_wakeup_fd(writer.fileno())
    previous = signal.signal(signal.SIGINT, hold)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.set_wakeup_fd(previous_fd)
        turn.acquire(blocking=False)
        writer.close()
