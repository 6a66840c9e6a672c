"""The figures of the accuracy tables: a method keeps its color, and a line joins what was measured side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import accuracy_figure
from ptmq_lightning.report import style
from ptmq_lightning.report.tables import Cell, Line

WIDTHS = ["w2a4", "w3a3", "w4a4", "w8a8"]


def line(method: str, width: str, top1: float) -> Line:
    return Line((method,), width, {"top1": Cell(top1, 0.5, 3), "logit_error": Cell(1 / top1, None, 1)})


def test_a_line_joins_neighboring_widths_alone() -> None:
    there = {width: Cell(90.0, None, 1) for width in ("w2a4", "w4a4", "w8a8")}
    assert [list(part) for part in accuracy_figure.stretches(there, WIDTHS)] == [["w2a4"], ["w4a4", "w8a8"]]


def test_a_method_has_its_color_whatever_stands_beside_it_and_its_variants_are_told_apart() -> None:
    looks = accuracy_figure.looks_of(["mine", "qdrop", "qdrop+recon.iters=9", "qdrop+seed=1", "ptmq+bits=wide"])
    assert {looks[name]["color"] for name in looks if name.startswith("qdrop")} == {style.METHODS["qdrop"]}
    assert looks["ptmq+bits=wide"]["color"] == style.METHODS["ptmq"] and looks["ptmq+bits=wide"]["linestyle"] == "--"
    assert len({(look["color"], look["marker"]) for look in looks.values()}) == len(looks)


def test_a_drop_of_one_point_is_seen_beside_one_of_eighty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (made.append(self), save(self, *a, **k)))
    lines = [line("rtn", "w2a4", 10.0), line("ptmq", "w2a4", 89.0), line("ptmq", "w4a4", 90.0)]
    accuracy_figure.draw(lines, WIDTHS, {"top1": 90.0}, "a network", tmp_path / "figure.png")
    axes = made[0].axes[0]
    bottom, one, none = (axes.transAxes.inverted().transform(axes.transData.transform((0, y)))[1] for y in (80, 1, 0))
    assert none - one > 0.1 and bottom < 0.2
    assert made[0].get_suptitle() == "a network" and Image.open(tmp_path / "figure.png").width == 1500
