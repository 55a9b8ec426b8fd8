"""Ctrl-C while `python -m optkit` imports JAX, which takes seconds.

Extension modules turn a KeyboardInterrupt in their imports into other errors, or lose
it. Python imports the package before the command, so the handler is set here. It is set
for that command only.
"""

import os
import signal
import sys


def _stop(*_: object) -> None:
    os.write(2, b"Stopped by Ctrl-C.\n")
    os._exit(130)  # the exit code that shells report after Ctrl-C


# While Python looks for the module of `-m`, the first argument is "-m".
_words = [*sys.orig_argv, "", ""]
if sys.argv[:1] == ["-m"] and _words[_words.index("-m") + 1].startswith("optkit"):
    signal.signal(signal.SIGINT, _stop)
