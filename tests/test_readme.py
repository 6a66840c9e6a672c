"""The README is a page that tells the truth: its example runs, its picture and the tables of all pages are those of
benchmarks/results."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import picture, readme
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config.build import PAIRS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAIRED = {("bits", pair) for pair in PAIRS}  # options without a file


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_tables_of_a_page_are_those_that_were_measured(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- begin benchmarks/") == len(readme.PLACE.findall(text))
    assert readme.filled(text) == text


def test_every_table_of_the_readme_comes_from_one_place() -> None:
    assert len(readme.PLACE.findall(README)) == 1
    assert len(readme.PLACE.findall((ROOT / "docs" / "results.md").read_text())) > 10


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("benchmarks/results/digits.md#Top-9", "Top-9"),
        ("benchmarks/results/digits.md\nrows: w9a9\n", "w9a9"),
        ("benchmarks/results/digits.md\ncolumns: config; top9\n", "top9"),
    ],
)
def test_what_was_never_measured_is_named(place: str, named: str) -> None:
    with pytest.raises(ValueError, match=rf"{named}.*benchmarks/results/digits\.md"):
        readme.filled(f"<!-- begin {place} -->\n<!-- end -->")


def test_rows_and_columns_of_a_table_can_be_chosen() -> None:
    begin = "<!-- begin benchmarks/results/digits.md\nrows: w4a4|w8a8\ncolumns: config; top1\n-->\n"
    table = readme.filled(begin + "<!-- end -->").removeprefix(begin).splitlines()
    assert table[:2] == ["| config | top1 |", "| --- | ---: |"]
    assert [line.split()[1] for line in table[2:-1]] == ["w4a4", "w8a8"]


def test_the_picture_shows_the_numbers_of_the_results() -> None:
    assert "](docs/accuracy.png)" in README
    with Image.open(picture.PICTURE) as image:
        assert image.text["Description"] == picture.digest(picture.records())  # type: ignore[attr-defined]


def test_the_picture_is_made_anew(tmp_path: Path) -> None:
    picture.draw(picture.records(), tmp_path / "accuracy.png")
    with Image.open(tmp_path / "accuracy.png") as image, Image.open(picture.PICTURE) as committed:
        assert image.size == committed.size


def test_every_method_of_the_picture_was_measured_somewhere() -> None:
    found = picture.records().values()
    assert [name for name in picture.METHODS if not any(picture.points(record, name) for record in found)] == []


def test_a_line_of_the_picture_joins_measured_neighbors_alone() -> None:
    found = [picture.Point(bits, 90.0, 1.0) for bits in (2, 3, 5, 8)]
    assert [[point.bits for point in part] for part in picture.stretches(found)] == [[2, 3], [5], [8]]


def test_a_bar_of_the_picture_holds_the_error_of_images_and_of_seeds() -> None:
    assert picture.standard_error([50.0], 100) == pytest.approx(5.0)
    assert picture.standard_error([48.0, 52.0], 100) == pytest.approx((5.0**2 + 2.0**2) ** 0.5)


def test_the_picture_shows_one_point_and_names_what_its_axis_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: made.append(self))
    monkeypatch.setattr(picture, "METHODS", {name: picture.METHODS[name] for name in ("rtn", "ptmq")})
    rows = {"rtn": {"w2a4": 10.4, "w8a8": 90.0}, "ptmq": {"w2a4": 89.0, "w8a8": 90.0}}
    cells = [
        {"method": name, "rows": [{"config": pair, "top1": top1} for pair, top1 in found.items()]}
        for name, found in rows.items()
    ]
    record = {"fp": {"top1": 90.0}, "evaluation_images": 1000, "cells": cells}
    picture.draw({"cifar_resnet20": record, "imagenet_vit_t": record}, tmp_path / "accuracy.png")
    axes = made[0].axes[0]
    low, high = (axes.transAxes.inverted().transform(axes.transData.transform((2, y)))[1] for y in (89.0, 90.0))
    assert high - low > 0.1
    assert [text.get_text() for text in axes.texts] == ["↓ 10.4"]
    assert "the axis begins at 85.0 %" in axes.get_xlabel()


def test_the_points_of_the_picture_are_the_means_of_the_table() -> None:
    record = json.loads((picture.RESULTS / "accuracy_cifar_resnet20.json").read_text())
    means = {(row["method"], row["bits"]): row["top1_mean"] for row in record["rows"]}
    found = {
        (method, picture.pair(p.bits)): p.top1 for method in picture.METHODS for p in picture.points(record, method)
    }
    assert {key: found[key] for key in means if key in found} == pytest.approx(
        {key: mean for key, mean in means.items() if key in found}
    )


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["logits"].shape == (64, 10)  # type: ignore[attr-defined]
    assert (tmp_path / "outputs" / "my_model" / "manifest.json").exists()


def test_the_two_readings_of_the_method_differ_in_the_rows_of_their_table() -> None:
    ours, paper = (dataclasses.asdict(configuration([f"method={name}"])) for name in ("ptmq", "ptmq_paper"))
    rows = {
        "mixer": ["block input"], "loss": ["loss", "errors of the widths"], "rounding": ["rounding"],
        "method": ["biases"], "step_size": ["weight steps"], "placement": ["levels behind a GELU"], "bits": ["groups"],
        "fold": ["channels before the fit"], "tune": ["the network as a whole"],
    }  # fmt: skip
    assert {group for group in ours if ours[group] != paper[group]} == set(rows)
    text = (ROOT / "docs" / "method.md").read_text()
    (table,) = re.findall(r"^\| \| `method=ptmq_paper` \|.*?\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
    told = sorted(line.split("|")[1].strip() for line in table.splitlines()[1:])
    assert told == sorted(name for names in rows.values() for name in names)
