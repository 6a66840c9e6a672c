"""The pictures of an allocation: a heat map of the sensitivity, and the front against bytes and bit operations."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path

from ptmq_lightning.allocate.front import COSTS, Point
from ptmq_lightning.allocate.prices import table_text
from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.runtime.files import replacing_file, write_atomically

LEAST = 1e-6  # of the scale, where no layer does harm


def write_sensitivity(folder: Path, sensitivity: Sensitivity) -> None:
    """sensitivity.csv, which is read as a table of prices too, and sensitivity.png."""
    write_atomically(folder / "sensitivity.csv", table_text(sensitivity, "harm"))
    with replacing_file(folder / "sensitivity.png") as part:
        draw_sensitivity(part, sensitivity)


def draw_sensitivity(path: Path, sensitivity: Sensitivity) -> None:
    """A row for each layer, a column for each pair, dark where a layer is hurt; logarithmic."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    layers, pairs = list(sensitivity), sorted({pair for harm in sensitivity.values() for pair in harm})
    least = min((h for harm in sensitivity.values() for h in harm.values() if h > 0), default=LEAST)
    values = [[max(sensitivity[n].get(pair, least), least) for pair in pairs] for n in layers]
    figure = Figure(figsize=(2.5 + 0.45 * len(pairs), 1.4 + 0.2 * len(layers)), layout="constrained")
    axis = figure.add_subplot()
    top = max(max(row) for row in values)
    image = axis.imshow(values, cmap="magma_r", norm=LogNorm(least, max(top, 10 * least)), aspect="auto")
    axis.set_xticks(range(len(pairs)), list(map(str, pairs)), rotation=90, fontsize=8)
    axis.set_yticks(range(len(layers)), layers, fontsize=8)
    axis.set_title("harm of one layer at a pair, the others at the widest", fontsize=9)
    figure.colorbar(image, label="mean KL from float")
    figure.savefig(path, dpi=150, format="png")


def draw_front(path: Path, points: Sequence[Point], whole: float | None) -> None:
    """Accuracy (agreement where there is none) against bytes and against bit operations.

    Args:
        points: uniform pairs and named assignments.
        whole: accuracy of the float network in percent; None: unknown, and float agrees with itself.
    """
    from matplotlib.figure import Figure

    key, label = ("top1", "top-1, %") if whole is not None else ("agreement", "agreement with float, %")
    figure = Figure(figsize=(10, 4), layout="constrained")
    units = ((1e6, "size, MB"), (1e9, "bit operations of an image, G"))
    for axis, cost, (unit, title) in zip(figure.subplots(1, 2, sharey=True), COSTS, units, strict=True):
        for family, name, style, color in (("uniform", "uniform", "s--", "gray"), (cost, "mixed", "o-", "tab:blue")):
            mine = sorted((p for p in points if p.family == family), key=operator.attrgetter(cost))
            places = [(getattr(p, cost) / unit, getattr(p, key)) for p in mine]
            axis.plot([x for x, _ in places], [y for _, y in places], style, label=name, color=color, markersize=4)
            for point, place in zip(mine, places, strict=True):
                shown, right = point.config.removeprefix("mixed_"), family == "uniform"
                if right or cost == "size_bytes":  # the bit operations of a mixed one stand on the axis
                    axis.annotate(
                        shown, place, xytext=(4, -9) if right else (-3, 4), textcoords="offset points", fontsize=7,
                        color=color, ha="left" if right else "right",
                    )  # fmt: skip
        axis.axhline(100.0 if whole is None else whole, color="black", linestyle=":", label="float")
        axis.set_xlabel(title)
        axis.margins(x=0.1, y=0.08)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel(label)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150, format="png")
