"""Fill the tables of README.md and docs/ from benchmarks/results: what stands between a "begin" and an "end" comment.

    python benchmarks/readme.py

    <!-- begin FILE#TITLE
    rows: REGEX
    columns: NAME; NAME
    -->
    (a table)
    <!-- end -->

FILE is read from the repository's root. #TITLE takes the table behind the paragraph TITLE of the file, without it the
whole file stands there. "rows" keeps the lines of the table in which the regular expression is found, "columns" the
columns of these names; both may be left out. What `ptmq export --targets` prints stands behind a comment of that name.
"""

from __future__ import annotations

import re
from pathlib import Path

from ptmq_lightning.export import support

ROOT = Path(__file__).resolve().parent.parent
TARGETS = re.compile(r"(<!-- ptmq export --targets -->\n).*?(<!-- end of targets -->)", flags=re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACE = re.compile(
    r"(<!-- begin (?P<file>[^#\s]+)(?:#(?P<title>[^\n]+?))?(?:\nrows: (?P<rows>[^\n]+))?"
    r"(?:\ncolumns: (?P<columns>[^\n]+))?\s+-->\n).*?(?P<end><!-- end -->)",
    flags=re.DOTALL,
)


def filled(text: str) -> str:
    """The text of a page with every table as it was measured.

    Raises:
        ValueError: the file has no such part, or the table no such row or column.
    """
    text = TARGETS.sub(lambda place: f"{place[1]}{support.text()}\n{place[2]}", text)
    return PLACE.sub(lambda place: place[1] + _table(place) + "\n" + place["end"], text)


def _table(place: re.Match[str]) -> str:
    file, title = place["file"], place["title"]
    found = _part(file, title)
    where = file if title is None else f"{file}#{title}"
    if place["rows"]:
        found = _with_rows(found, place["rows"], where)
    return _with_columns(found, place["columns"].split("; "), where) if place["columns"] else found


def _part(file: str, title: str | None) -> str:
    text = (ROOT / file).read_text(encoding="utf-8").strip()
    if title is None:
        return text
    parts = [part.lstrip("# ") if part.startswith("#") else part for part in text.split("\n\n")]
    if title not in parts:
        raise ValueError(f"a page asks for the part {title!r} of {file}; expected one of its paragraphs")
    return parts[next(n for n in range(parts.index(title) + 1, len(parts)) if parts[n].startswith("|"))]


def _with_rows(table: str, pattern: str, where: str) -> str:
    head, rule, *body = table.splitlines()
    kept = [line for line in body if re.search(pattern, line)]
    if not kept:
        raise ValueError(f"a page asks for rows {pattern!r} of {where}; expected an expression that a row fits")
    return "\n".join([head, rule, *kept])


def _with_columns(table: str, names: list[str], where: str) -> str:
    lines = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines()]
    if missing := [name for name in names if name not in lines[0]]:
        raise ValueError(f"a page asks for the column {missing[0]!r} of {where}; expected one of {lines[0]}")
    places = [lines[0].index(name) for name in names]
    return "\n".join(f"| {' | '.join(line[place] for place in places)} |" for line in lines)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
