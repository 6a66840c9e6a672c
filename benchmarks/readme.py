"""Fill the README's tables from benchmarks/results: what stands between "begin FILE" and "end FILE", or one part of it.

    python benchmarks/readme.py

"begin FILE#TITLE" takes the table behind the paragraph TITLE of the file, "begin FILE" the whole file.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PLACE = re.compile(r"(<!-- begin ([^#\s]+)(?:#(.+?))? -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def filled(text: str) -> str:
    """The text with every table as it was measured. Raises ValueError for a part that the file does not have."""
    return PLACE.sub(lambda place: place[1] + _part(place[2], place[3]) + "\n" + place[4], text)


def _part(file: str, title: str | None) -> str:
    text = (ROOT / file).read_text(encoding="utf-8").strip()
    if title is None:
        return text
    parts = text.split("\n\n")
    if title not in parts:
        raise ValueError(f"README.md asks for the part {title!r} of {file}; expected one of its paragraphs")
    return parts[parts.index(title) + 1]


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
