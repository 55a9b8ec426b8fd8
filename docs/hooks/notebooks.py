"""Renders the notebooks as pages of the site, and a gallery of their pictures.

mkdocs calls the functions here while it builds: see `hooks` in mkdocs.yml.
"""

import html
import io
import re
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from PIL import Image

FOLDER = Path(__file__).parents[2] / "notebooks"
GALLERY = "<!-- gallery -->"
THUMBNAIL = (480, 320)  # pixels, at most

_cards: list[str] = []


@event_priority(100)
def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each notebook, its pictures, and a thumbnail of the first one."""
    _cards.clear()
    for path in sorted(FOLDER.glob("*.ipynb")):
        body, resources = MarkdownExporter().from_filename(
            str(path), {"output_files_dir": path.stem}
        )
        pictures = resources["outputs"]
        page = f"notebooks/{path.stem}.md"
        files.append(File.generated(config, page, content=body))
        for name, data in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=data))
        thumbnail = f"notebooks/{path.stem}/thumbnail.png"
        first = next(data for name, data in pictures.items() if name.endswith(".png"))
        files.append(File.generated(config, thumbnail, content=_small(first)))
        _cards.append(_card(body, f"{page[:-3]}/", thumbnail))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Puts the gallery where a page asks for it."""
    depth = page.url.count("/")
    cards = "\n".join(card.replace("@", "../" * depth) for card in _cards)
    return markdown.replace(GALLERY, f'<div class="gallery">\n{cards}\n</div>')


def _small(picture: bytes) -> bytes:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail(THUMBNAIL)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _card(body: str, url: str, thumbnail: str) -> str:
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    paragraphs = [p for p in body.split("\n\n") if p.strip() and p[0] not in "#`<!|-"]
    summary = re.split(r"(?<=[.?!]) ", " ".join(paragraphs[0].split()))[0]
    heading = html.escape(title[1] if title else url)
    summary = html.escape(re.sub(r"[`*]", "", summary))
    return (
        f'<a class="card" href="@{url}"><img src="@{thumbnail}" alt="" loading="lazy">'
        f"<strong>{heading}</strong><span>{summary}</span></a>"
    )
