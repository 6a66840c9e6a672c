"""The figures of benchmarks/accuracy.py: points of top-1 lost against float, and the logit error, against bits.

Drops stand on an axis that is linear up to two points and logarithmic beyond, so that one point is seen beside eighty.
A method has the color of every other figure (ptmq_lightning/report/style.py); its variants are dashed. A line joins
neighboring widths alone: where a method was not measured, it is interrupted. Methods stand a little beside each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ptmq_lightning.report import style
from ptmq_lightning.report.tables import Cell, Line

TITLES = {
    "cifar_resnet20": "ResNet-20, CIFAR-10", "cifar_vit": "small ViT, CIFAR-10",
    "imagenet_lite0": "EfficientNet-Lite0, ImageNet", "imagenet_mobileone": "MobileOne-S0, ImageNet",
    "imagenet_vit_t": "ViT-Tiny, ImageNet",
}  # fmt: skip
LINEAR = 2.0  # points of drop
TICKS = (-5, -2, -1, 0, 1, 2, 5, 10, 20, 50, 100)
SHIFT, WIDEST = 0.1, 0.5  # from a method to the next, and from the first to the last, in distances between widths
MARKERS = "osD^vPX*"


def draw(lines: Sequence[Line], widths: Sequence[str], fp: Mapping[str, Any], title: str, file: Path) -> None:
    """A panel of drops and one of logit errors, a line per method; bars are standard deviations over seeds."""
    figure = Figure(figsize=(10, 5.4), layout="constrained", facecolor="white")
    figure.suptitle(title, fontweight="bold")
    drops, errors = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    methods = list(dict.fromkeys(line.settings[0] for line in lines))
    looks, reach = looks_of(methods), min(SHIFT * (len(methods) - 1), WIDEST)
    for number, method in enumerate(methods):
        found = {line.config: line.cells for line in lines if line.settings[0] == method}
        shift = reach * (number / max(1, len(methods) - 1) - 0.5)
        for axis, value in ((drops, "top1"), (errors, "logit_error")):
            there = {width: cell for width, cells in found.items() if (cell := cells[value]) is not None}
            for part, stretch in enumerate(stretches(there, widths)):
                _line(axis, stretch, fp["top1"] if value == "top1" else None, shift, widths,
                      {**looks[method], "label": method if part == 0 else None})  # fmt: skip
    _axes(drops, errors, widths, fp["top1"])
    figure.legend(*drops.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(file, dpi=150, metadata={"Software": ""})


def stretches(there: Mapping[str, Cell], widths: Sequence[str]) -> list[dict[str, Cell]]:
    """Runs of neighboring widths that were measured: what a line may join."""
    parts: list[dict[str, Cell]] = [{}]
    for width in widths:
        if width in there:
            parts[-1][width] = there[width]
        elif parts[-1]:
            parts.append({})
    return [part for part in parts if part]


def looks_of(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Color by the method, marker and dashes by how many of its variants came before."""
    looks, seen, others = {}, dict[str, int](), 0
    for method in methods:
        name = method.split("+")[0]
        variant = seen.get(name, 0) + ("+" in method and name not in seen)
        seen[name] = variant + 1
        looks[method] = {
            "color": style.color_of(method, others), "marker": MARKERS[variant % len(MARKERS)],
            "linestyle": style.DASHES[min(variant, len(style.DASHES) - 1)],
            "linewidth": 2.4 if name == "ptmq" else 1.3, "zorder": 4 if name == "ptmq" else 3,
        }  # fmt: skip
        others += name not in style.METHODS
    return looks


def _line(
    axis: Axes, stretch: Mapping[str, Cell], fp: float | None, shift: float, widths: Sequence[str], look: Any
) -> None:
    """fp: the float network's top-1, of which the means are what is lost; None: as they are."""
    at = [widths.index(width) + shift for width in stretch]
    means = [cell.mean if fp is None else fp - cell.mean for cell in stretch.values()]
    spreads = [cell.spread or 0 for cell in stretch.values()]
    axis.errorbar(at, means, yerr=spreads, markersize=4, capsize=2, elinewidth=1, **look)


def _axes(drops: Axes, errors: Axes, widths: Sequence[str], fp: float) -> None:
    drops.set_yscale("symlog", linthresh=LINEAR, linscale=1.5)
    drops.yaxis.set_major_locator(FixedLocator(TICKS))
    drops.yaxis.set_minor_locator(NullLocator())
    drops.yaxis.set_major_formatter("{x:g}")
    drops.invert_yaxis()
    drops.axhline(0, color="#333333", linestyle=":", label=f"float, {fp:.1f} %")
    drops.set(title="top-1 lost against float", ylabel=f"points (logarithmic beyond {LINEAR:g}; up is better)")
    errors.set_yscale("log")
    errors.invert_yaxis()
    errors.set(title="relative error of the logits", ylabel="logarithmic; up is better")
    for axis in (drops, errors):
        style.clean(axis)
        axis.grid(True, color=style.QUIET)
        axis.set_xticks(range(len(widths)), widths)
        axis.set_xlabel("bits of weights (w) and activations (a)")
