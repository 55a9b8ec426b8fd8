"""`python -m optkit`: trains a small network on real digits and compares optimizers."""

import sys

try:
    from .demo.command import main
except ModuleNotFoundError as error:
    print(
        f'python -m optkit: error: {error}; run `pip install "optkit[demo]"` first',
        file=sys.stderr,
    )
    raise SystemExit(2) from None

if __name__ == "__main__":
    raise SystemExit(main())
