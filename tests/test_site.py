"""The pages are a site without dead links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def listed(entries: list[object]) -> list[str]:
    """The pages of the navigation."""
    found: list[str] = []
    for entry in entries:
        assert isinstance(entry, dict)
        for value in entry.values():
            found += listed(value) if isinstance(value, list) else [value]
    return found


def test_every_page_for_readers_is_in_the_navigation() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = listed(site["nav"])
    notebooks = {path.relative_to(ROOT).with_suffix(".md").as_posix() for path in (ROOT / "examples").rglob("*.ipynb")}
    assert [page for page in pages if page not in notebooks and not (ROOT / page).exists()] == []
    assert len(notebooks) == 3 and notebooks <= set(pages)
    assert {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")} <= set(pages)


@pytest.mark.slow
def test_the_site_is_built_strictly_and_draws_its_formulas(tmp_path: Path) -> None:
    pytest.importorskip("material")
    pytest.importorskip("latex2mathml")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    method = (tmp_path / "site" / "docs" / "method.html").read_text(encoding="utf-8")
    assert "<math" in method and not re.search(r"\$[^$<]+\$", re.sub(r"<code>.*?</code>", "", method, flags=re.DOTALL))
    notebook = (tmp_path / "site" / "examples" / "notebooks" / "ablation.html").read_text(encoding="utf-8")
    assert 'href="ablation.ipynb"' in notebook and (tmp_path / "site/examples/notebooks/ablation.ipynb").exists()
    assert "examples/notebooks/ablation.html" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="https?://[^"]+\.(?:js|css)"', method), "a page loads nothing from elsewhere"
