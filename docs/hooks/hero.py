"""Puts a picture of each use side by side, from the notebooks' committed outputs.

python docs/hooks/hero.py
"""

import base64
import io
from pathlib import Path

import nbformat
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[2]
PANELS = [  # notebook, which of its pictures, caption
    ("04_second_order", 0, "precondition a step"),
    ("05_implicit", 0, "differentiate a solution"),
    ("02_influence", 0, "attribute to data"),
    ("03_pruning", 0, "prune weights"),
]
PANEL = (520, 340)  # pixels
CAPTION = 44


def picture(name: str, index: int) -> Image.Image:
    """One picture of a notebook."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    outputs = [o for cell in cells for o in cell.get("outputs", []) if "data" in o]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.data]
    return Image.open(io.BytesIO(base64.b64decode(pictures[index]))).convert("RGB")


def main() -> None:
    """Writes docs/images/four-uses.png."""
    width, height = PANEL
    sheet = Image.new("RGB", (2 * width, 2 * (height + CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(20)
    for i, (name, index, caption) in enumerate(PANELS):
        panel = picture(name, index)
        panel.thumbnail((width - 20, height - 10))
        left, top = (i % 2) * width, (i // 2) * (height + CAPTION)
        text = draw.textlength(caption, font)
        draw.text((left + (width - text) / 2, top + 12), caption, "#333333", font)
        sheet.paste(panel, (left + (width - panel.width) // 2, top + CAPTION))
    sheet.quantize(128).save(ROOT / "docs" / "images" / "four-uses.png", optimize=True)


if __name__ == "__main__":
    main()
