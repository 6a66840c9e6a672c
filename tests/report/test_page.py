"""The page of a run says what its record says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.report.page import final_losses, write_page

METRICS = """iter,block,block_name,loss/w3a3,loss/w4a4,loss/rounding,beta,settled
0,0,stem,9.0,,0,20,0
50,0,stem,8.0,,0,20,0
100,0,stem,7.0,,0,20,0
150,0,stem,3.0,,0,20,0
200,1,head,,0.5,0,20,0
"""


class Cells(HTMLParser):
    """The text of every table cell, and the elements left open."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.inside = tag in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = False


def written(folder: Path, results: dict[str, Any]) -> str:
    return write_page(folder, results).read_text(encoding="utf-8")


def test_the_table_holds_the_figures_of_every_width(tmp_path: Path, results: dict[str, Any]) -> None:
    parser = Cells()
    parser.feed(written(tmp_path, results))
    assert [cell for cell in parser.cells if re.fullmatch(r"w\da\d|float", cell)] == ["float", "w4a4", "w3a3"]
    assert {"91.50", "90.00", "80.00", "0.0300"} <= set(parser.cells)


def test_a_page_loads_nothing_and_is_the_same_for_the_same_run(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    page = written(tmp_path, results)
    assert not re.search(r"<(script|link|img|iframe)\b|@import|url\(http", page)
    assert page.count("<svg") == 2  # accuracy, losses
    assert written(tmp_path, results) == page


def test_text_of_the_run_is_no_markup(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "config.yaml").write_text("name: <b>&\n")
    page = written(tmp_path, {**results, "model": "<script>x</script>"})
    assert "<script" not in page and "name: &lt;b&gt;&amp;" in page


def test_a_final_loss_is_the_mean_over_the_last_quarter_of_a_block(tmp_path: Path) -> None:
    lines = METRICS.splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert final_losses(rows) == {"w3a3": {"stem": pytest.approx(3.0)}, "w4a4": {"head": pytest.approx(0.5)}}


def test_the_page_says_how_images_are_prepared_and_what_stays_in_float(tmp_path: Path, results: dict[str, Any]) -> None:
    lines = ["preprocessing: mean [0.5] (model.preprocessing (mean), the rest <guessed>)", "build: 1.0 s"]
    lines += ["not quantized: up: a Conv1d is not quantized"]
    (tmp_path / "train.log").write_text("".join(f"2026-01-01 12:00:00 {line}\n" for line in lines))
    page = write_page(tmp_path, results).read_text(encoding="utf-8")
    assert "<li>preprocessing: mean [0.5] (model.preprocessing (mean), the rest &lt;guessed&gt;)</li>" in page
    assert "<li>not quantized: up: a Conv1d is not quantized</li>" in page and "build: 1.0" not in page
