"""The picture of the README, docs/accuracy.png: top-1 against bits, from the results of benchmarks/accuracy.py.

    python benchmarks/picture.py

The axis of a panel begins a few points below the float network, so that one point is seen; what lies below it stands
at the lower edge with its number. A line joins two measured neighbors alone: where a method was not measured at a width
of the axis, its line is interrupted. Methods stand a little beside each other, so that none hides another. The bars are
one standard error of top-1, which has two sources that are added in quadrature: the finite number of test images (the
same images for every method) and, where there is more than one, the seeds. The picture carries a digest of its numbers
and axes, by which a test tells whether it is still that of the results.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy_figure import TITLES
from ptmq_lightning.report import style

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "accuracy.png"
NETWORKS = {
    "cifar_resnet20": 5.0,
    "imagenet_vit_t": 12.0,
}  # of results/accuracy_NAME.json: points of the axis below float
METHODS = {  # in the order of drawing: label, marker, shift to the side; colors are those of every figure
    "rtn": ("nearest rounding: one model", "^", 0.0),
    "rtn+placement.gelu=table": ("nearest rounding with ptmq's GELU tables", "v", 0.06),
    "qdrop": ("QDrop: a model for each width", "s", 0.13),
    "qdrop+placement.gelu=table": ("QDrop with ptmq's GELU tables", "D", 0.26),
    "ptmq": ("ptmq: one model for all widths", "o", -0.13),
}
BITS = range(2, 9)
INK, PAPER = "#333333", {"facecolor": "white", "edgecolor": "none", "pad": 1}
FLOAT = "float network"


@dataclass(frozen=True)
class Point:
    """Top-1 at w{bits}a{bits}, but w2a4 for 2 bits: mean over seeds and one standard error, in percent."""

    bits: int
    top1: float
    error: float


def pair(bits: int) -> str:
    """The pair that stands for a number of bits: 2-bit activations were not measured."""
    return "w2a4" if bits == 2 else f"w{bits}a{bits}"


def points(record: dict[str, Any], method: str) -> list[Point]:
    """What was measured of a method, narrow to wide."""
    found = []
    for bits in BITS:
        rows = [row for cell in record["cells"] if cell["method"] == method for row in cell["rows"]]
        if seeds := [row["top1"] for row in rows if row["config"] == pair(bits)]:
            found.append(Point(bits, statistics.fmean(seeds), standard_error(seeds, record["evaluation_images"])))
    return found


def standard_error(seeds: list[float], images: int) -> float:
    """Of a mean top-1 in percent: that of a share of ``images`` images, and that of the seeds."""
    share = statistics.fmean(seeds) / 100
    of_images = 100 * math.sqrt(share * (1 - share) / images)
    of_seeds = statistics.stdev(seeds) / math.sqrt(len(seeds)) if len(seeds) > 1 else 0.0
    return math.hypot(of_images, of_seeds)


def stretches(found: list[Point]) -> list[list[Point]]:
    """Runs of neighboring widths: what a line may join."""
    parts: list[list[Point]] = []
    for point in found:
        if parts and parts[-1][-1].bits == point.bits - 1:
            parts[-1].append(point)
        else:
            parts.append([point])
    return parts


def records() -> dict[str, dict[str, Any]]:
    return {name: json.loads((RESULTS / f"accuracy_{name}.json").read_text(encoding="utf-8")) for name in NETWORKS}


def digest(found: dict[str, dict[str, Any]]) -> str:
    """Of every number that is drawn."""
    drawn = {
        name: [
            NETWORKS[name],
            record["fp"]["top1"],
            [[asdict(point) for point in points(record, method)] for method in METHODS],
        ]
        for name, record in found.items()
    }
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()


def draw(found: dict[str, dict[str, Any]], file: Path) -> None:
    figure = Figure(figsize=(9, 4.4), layout="constrained", facecolor="white")
    figure.suptitle("Accuracy against bits: one model at every width", color=INK, fontweight="bold")
    panels = figure.subplots(1, len(found))
    for axes, (name, record) in zip(panels, found.items(), strict=True):
        _panel(axes, record, NETWORKS[name])
        axes.set_title(TITLES[name], fontsize=10, color=INK)
    panels[0].set_ylabel("top-1 (%), ± 1 standard error", color=INK)
    shown: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    order = [*reversed([label for label, *_ in METHODS.values()]), FLOAT]
    figure.legend(
        [shown[label] for label in order], order, loc="outside lower center", ncols=3, frameon=False, fontsize=9
    )
    figure.savefig(file, dpi=160, metadata={"Description": digest(found), "Software": ""})


def _panel(axes: Axes, record: dict[str, Any], below: float) -> None:
    """below: points of the axis under the float network's top-1."""
    fp = record["fp"]["top1"]
    axes.axhline(fp, color=INK, linestyle=":", linewidth=1.2, label=FLOAT)
    drawn = {method: points(record, method) for method in METHODS}
    for method, (label, marker, shift) in METHODS.items():
        for number, part in enumerate(stretches(drawn[method])):
            axes.errorbar(
                [point.bits + shift for point in part], [point.top1 for point in part],
                yerr=[point.error for point in part], label=label if number == 0 else None,
                color=style.color_of(method, 0), marker=marker, linestyle="--" if "+" in method else "-",
                markersize=4.5, linewidth=1.6, capsize=2.5, elinewidth=1.1,
            )  # fmt: skip
    ends = [point.top1 + point.error for found in drawn.values() for point in found]
    axes.set_ylim(fp - below, max(fp, *ends) + below / 20)
    _fallen(axes, drawn)
    axes.set_xticks(list(BITS), [pair(bits) for bits in BITS])
    axes.set_xlim(BITS[0] - 0.5, BITS[-1] + 0.5)
    cut = f"the axis begins at {fp - below:.1f} %; ↓ lies below it"
    axes.set_xlabel(f"bits of weights (w) and activations (a)\n{cut}", color=INK)
    axes.tick_params(colors=INK)
    axes.grid(axis="y", color=style.QUIET, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _fallen(axes: Axes, drawn: dict[str, list[Point]]) -> None:
    """The results that lie below the axis: an arrow at the edge and the number, one above the other at a width."""
    bottom, top = axes.get_ylim()
    seen: dict[int, int] = {}
    for method, found in drawn.items():
        for point in found:
            if point.top1 < bottom:
                row = seen[point.bits] = seen.get(point.bits, -1) + 1
                axes.text(
                    point.bits, bottom + (0.02 + 0.06 * row) * (top - bottom), f"↓ {point.top1:.1f}",
                    color=style.color_of(method, 0), ha="center", fontsize=9, fontweight="bold", bbox=PAPER,
                )  # fmt: skip


if __name__ == "__main__":
    draw(records(), PICTURE)
