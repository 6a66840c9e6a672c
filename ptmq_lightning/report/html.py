"""The pieces of a page that loads nothing from elsewhere: its look in light and dark, tables, frames, tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { --ink: #1d2026; --quiet: #5b6270; --paper: #ffffff; --card: #f5f6f8; --line: #d9dce2; --accent: #0072b2;
  color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ec; --quiet: #a2a9b6; --paper: #15171b; --card: #1f2329;
  --line: #3a404a; --accent: #6cb8ec } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; color: var(--ink);
  background: var(--paper); overflow-wrap: break-word }
h1 { font-size: 1.45rem; line-height: 1.25; margin: .5rem 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
p.quiet, figcaption, .tile span { color: var(--quiet) } p { max-width: 48rem }
a { color: var(--accent) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; white-space: normal; vertical-align: bottom } td:first-child, th:first-child { text-align: left }
table.left td, table.left th { text-align: left; white-space: normal }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0 }
.tile { background: var(--card); border-radius: .5rem; padding: .6rem .8rem }
.tile b { display: block; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums }
.tile span { font-size: .85rem }
.figures { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: .5rem 0; min-width: 0; max-width: 100% }
figure svg { max-width: 100%; height: auto; color: var(--ink) }
.wide svg { max-width: none } figcaption { font-size: .85rem; max-width: 29rem }
pre { background: var(--card); padding: .8rem; overflow-x: auto; border-radius: .5rem } details { margin: .4rem 0 }
summary { cursor: pointer } .picture { image-rendering: pixelated; width: 3rem; height: 3rem; object-fit: contain }
td.other { font-weight: 700; color: var(--accent) } td.wrong { text-decoration: underline dotted }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + "\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, quiet: bool = False) -> str:
    """Text, escaped."""
    return f"<p{' class=quiet' if quiet else ''}>{escape(text)}</p>"


def tiles(values: Iterable[tuple[str, str]]) -> str:
    """(figure, what it is) side by side."""
    inner = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(of)}</span></div>' for value, of in values)
    return f'<div class="tiles">{inner}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: bool = False) -> str:
    """A table that scrolls inside its frame; cells that are `Cell`s keep their markup."""

    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(_cell(tag, cell) for cell in cells) + "</tr>\n"

    kind = ' class="left"' if left else ""
    return (
        f'<div class="wide"><table{kind}>\n{line("th", header)}{"".join(line("td", row) for row in rows)}</table></div>'
    )


class Cell(str):
    """A cell's content as markup; kind: the class of the cell."""

    kind: str = ""

    @classmethod
    def of(cls, text: str, kind: str = "", *, picture: bool = False) -> Cell:
        """Text, or the picture that has this address."""
        made = cls(f'<img class="picture" alt="" src="{escape(text)}">' if picture and text else escape(text))
        made.kind = kind
        return made


def _cell(tag: str, cell: str) -> str:
    if isinstance(cell, Cell):
        return f"<{tag}{f' class={cell.kind}' if cell.kind else ''}>{cell}</{tag}>"
    return f"<{tag}>{escape(str(cell))}</{tag}>"


def figure(svg: str, caption: str = "", *, scrolls: bool = False) -> str:
    """A drawing: narrow enough for a telephone, or in a frame that scrolls."""
    inner = f'<div class="wide">{svg}</div>' if scrolls else svg
    return f"<figure>{inner}<figcaption>{escape(caption)}</figcaption></figure>"


def side_by_side(figures: Iterable[str]) -> str:
    """Beside each other where there is room."""
    return f'<div class="figures">{"".join(figures)}</div>'


def folded(summary: str, content: str) -> str:
    """Shown when it is opened."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
