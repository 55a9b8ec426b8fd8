"""One version, for the code, the package and the citation."""

import re
from pathlib import Path

import optkit as ok

ROOT = Path(__file__).parent.parent


def test_the_version_is_that_of_the_citation():
    """Oracle: identity. The build reads the version from the code."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", ok.__version__)
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [ok.__version__]
    assert 'path = "optkit/_version.py"' in (ROOT / "pyproject.toml").read_text()
