"""Hooks of mkdocs: the site's files are the repository's pages, each under its own path, and what they link to;
formulas become MathML, which browsers draw without any script, and a notebook becomes a page of its cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("*.md", "docs/**/*.md", "benchmarks/results/*.md")
NOTEBOOKS = "examples/notebooks/*.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """Those of the theme stay, those of docs_dir are replaced."""
    found = {page for pattern in PAGES for page in ROOT.glob(pattern)}
    linked = {
        target
        for page in found
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in link and (target := (page.parent / link).resolve()).is_file()
    }
    ours = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in sorted(found | linked)
    ]
    notebooks = sorted(ROOT.glob(NOTEBOOKS))
    ours += [
        File.generated(config, path.relative_to(ROOT).with_suffix(".md").as_posix(), content=notebook_page(path))
        for path in notebooks
    ]
    ours += [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in notebooks
        if path not in linked
    ]
    theme = [file for file in files if not str(file.abs_src_path or "").startswith(str(ROOT / "docs"))]
    return Files([*theme, *ours])


def notebook_page(path: Path) -> str:
    """A notebook as Markdown: its text, its code in fences, and where the file is; outputs are not kept in it."""
    text: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            magic, _, rest = source.partition("\n")
            language, source = ("bash", rest) if magic == "%%bash" else ("python", source)
            source = f"```{language}\n{source}\n```"
        text.append(source)
    link = f'<a href="{path.name}" download>{path.name}</a>'
    text.insert(1, f"This page shows the cells of a notebook, {link}; it runs in the environment of `make setup`.")
    return "\n\n".join(text) + "\n"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Formulas outside code; links to notebooks lead to their pages; the rest as it is."""
    markdown = re.sub(r"(\]\([^)#\s]*notebooks/|\]\()(\w+)\.ipynb\)", r"\1\2.md)", markdown)
    parts = re.split(r"(^```.*?^```|`[^`\n]*`)", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if number % 2 else _drawn(part) for number, part in enumerate(parts))


def _drawn(text: str) -> str:
    text = re.sub(r"\$\$(.+?)\$\$", lambda found: convert(found[1], display="block"), text, flags=re.DOTALL)
    return re.sub(r"(?<![\w\\])\$(?! )([^$\n]+?)(?<! )\$(?!\w)", lambda found: convert(found[1]), text)
