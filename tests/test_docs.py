"""docs/method.md has every section that the code cites, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_every_section_that_is_cited_is_there() -> None:
    sections = set(re.findall(r"^#+ §([\d.]+)", (ROOT / "docs" / "method.md").read_text(), flags=re.MULTILINE))
    files = [
        file for folder in ("ptmq_lightning", "conf", "tests", "benchmarks") for file in (ROOT / folder).rglob("*")
    ]
    cited = {
        (number.rstrip("."), file.relative_to(ROOT).as_posix())
        for file in files
        if file.suffix in (".py", ".yaml")
        for number in re.findall(r"PTMQ §([\d.]+)", file.read_text())
    }
    assert len(cited) > 20
    assert [place for place in sorted(cited) if place[0] not in sections] == []


def test_every_link_leads_to_a_file() -> None:
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text())]
    assert links
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []
