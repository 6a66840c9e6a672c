"""The page of a run says what its record says."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ptmq_lightning.report import run_figures, style
from ptmq_lightning.report.page import drop_error, write_page
from ptmq_lightning.report.run_figures import bits_of, final_losses

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
    assert page.count("<svg") == 4  # drop, bytes, losses at the end and over time
    assert written(tmp_path, results) == page


def details() -> dict[str, Any]:
    """What a run of two layers and one picture leaves."""
    values = {"edges": [-1.0, 0.0, 1.0], "counts": [3, 4], "bits": 4, "step_size": 0.1, "limits": [-8, 7]}
    return {
        "command": "python train.py <x>", "date": "2026-01-01 00:00 UTC", "processor": "a processor", "threads": 1,
        "source": "timm", "preprocessing": {"mean": [0.5]}, "classes": ["cat", "<dog>"],
        "layer_errors": {"w4a4": {"stem": 0.5, "fc": 0.25}}, "layer_images": 16, "chosen": "w4a4", "tried": 64,
        "histograms": [{"layer": "stem", "weight": values, "input": None}],
        "changes": [{"picture": "data:image/png;base64,AA==", "label": 0, "classes": {"float": 0, "w4a4": 1}}],
    }  # fmt: skip


def test_the_page_shows_layers_values_and_pictures_that_change(tmp_path: Path, results: dict[str, Any]) -> None:
    (tmp_path / "details.json").write_text(json.dumps(details()))
    page = written(tmp_path, results)
    assert page.count("<svg") == 5  # drop, bytes, errors as bars and as a map, values
    assert "At w4a4, on 16 images" in page and "weight of stem, 4 bits, step size 0.1" in page
    assert re.findall(r'src="([^"]{5})', page) == ["data:"]
    assert "<td class=other>&lt;dog&gt;</td>" in page and "python train.py &lt;x&gt;" in page
    assert "ptmq predict model" in page


def test_a_drop_cannot_have_a_larger_error_than_its_disagreement_leaves() -> None:
    assert drop_error({"agreement": 100.0}, 50) == 0.0
    assert drop_error({"agreement": 75.0}, 100) == pytest.approx(5.0)  # 100 * sqrt(0.25 / 100)


@pytest.mark.parametrize(("config", "bits"), [("w4a8", 4), ("mixed_3.5", 3.5), ("size_6mb", 6), ("named", 8)])
def test_widths_have_the_color_of_their_weight_bits(config: str, bits: float) -> None:
    assert bits_of(config) == bits


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


@pytest.mark.parametrize("lost", [0.0, 0.86, 12.5, 88.25])
def test_no_label_of_a_figure_is_cut_off(lost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(style, "svg", lambda figure: made.append(figure) or "")
    rows = [
        {"top1": 98.86 - lost / bits, "w_bits": bits, "config": f"w{bits}a{bits}", "size_bytes": 3284 * bits}
        for bits in range(2, 9)
    ]
    run_figures.drop(rows, {"top1": 98.86}, [0.4] * len(rows))
    run_figures.against_bytes(rows, {"top1": 98.86})
    for figure in made:
        inches = figure.get_tightbbox()
        assert inches.x0 >= 0 and inches.y0 >= 0
        assert inches.x1 <= figure.get_figwidth() and inches.y1 <= figure.get_figheight()
