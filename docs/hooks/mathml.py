r"""Turns the `math` fences of a page into MathML, which browsers draw by themselves.

Each line of a fence is an equation in LaTeX; `&` aligns, and `\text{...}` explains.
mkdocs calls `on_page_markdown` while it builds: see `hooks` in mkdocs.yml.
"""

import re
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replaces the fences of one page."""
    del page, config, files
    return FENCE.sub(lambda found: mathml(found[1]), markdown)


def mathml(equations: str) -> str:
    """The equations as one table: columns align alternately right and left."""
    rows = "".join(
        f"<mtr>{''.join(map(_cell, line.split('&')))}</mtr>"
        for line in equations.strip().splitlines()
    )
    return (
        '<div class="math"><math display="block" xmlns="http://www.w3.org/1998/'
        f'Math/MathML"><mtable displaystyle="true">{rows}</mtable></math></div>'
    )


def _cell(latex: str) -> str:
    content = convert(latex.strip() or "{}")
    return f"<mtd>{re.sub(r'^<math[^>]*>|</math>$', '', content)}</mtd>"
