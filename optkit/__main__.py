"""`python -m optkit` trains a small network on real digits and compares optimizers."""

import sys

try:
    from .demo.command import main
except ModuleNotFoundError as error:
    print(
        f'python -m optkit: error: {error}; run `pip install "optkit[demo]"` first',
        file=sys.stderr,
    )
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
