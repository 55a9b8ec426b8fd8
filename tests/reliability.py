"""Writes `docs/reliability.md` from what the tests declare.

    python tests/reliability.py --write

A section is a function without arguments that returns Markdown, made from code or from
a table that tests check: list it in `SECTIONS`. `tests/test_faults.py` asserts that the
committed page is what this writes.
"""

import sys
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"


SECTIONS: list[Callable[[], str]] = []


def page() -> str:
    """The whole page."""
    return "\n\n".join(section().strip() for section in SECTIONS) + "\n"


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(page())
    else:
        sys.stdout.write(page())
