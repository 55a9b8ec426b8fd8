"""The README's and the docs' Python snippets run as they stand."""

import re
import runpy
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_of_a_page_run_in_order(page, tmp_path):
    """Oracle: no exception; the snippets of one page share their names."""
    snippets = FENCE.findall(page.read_text())
    script = tmp_path / "snippets.py"
    script.write_text("\n\n".join(snippets))
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        runpy.run_path(str(script))


def test_the_readme_is_short():
    """Under 120 lines, so that it is read."""
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
