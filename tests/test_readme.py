"""The README's and the docs' Python snippets run as they stand."""

import re
import runpy
from pathlib import Path

import jax
import lineax as lx
import pytest

import optkit as ok

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


def test_every_result_is_in_the_api_with_its_text():
    """Oracle: the enumeration; Lineax's own items are Lineax's to explain."""
    page = (ROOT / "docs" / "api" / "inverse.md").read_text().replace("\\|", "|")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.*) \|$", page, re.MULTILINE))
    assert len(rows) == len(ok.RESULTS) - len(lx.RESULTS)
    assert {name: ok.RESULTS[getattr(ok.RESULTS, name)] for name in rows} == rows
