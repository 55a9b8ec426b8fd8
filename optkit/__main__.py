"""`python -m optkit` trains a small network on real digits and compares optimizers."""

import signal
import sys

try:
    from .demo.command import main
except ModuleNotFoundError as error:
    packages = "matplotlib mlxtend rich scikit-learn"
    print(
        f"python -m optkit: error: {error}; run `pip install {packages}` first",
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    # While JAX was imported, Ctrl-C ended the process: see `_interrupt.py`.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main())
