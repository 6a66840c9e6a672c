"""The figures of one run's page."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ptmq_lightning.report import style

LAST = 0.25  # share of a block's logged steps that its final loss is the mean of
NARROW = (4.5, 2.9)  # inches: as wide as a telephone shows without scaling
MOST_LAYERS, MOST_BLOCKS = 24, 24
DRAWN_BITS = 5  # beyond, levels are too many to be drawn


def drawn(
    draw: Callable[[Any], None],
    size: tuple[float, float] = NARROW,
    margins: tuple[float, float, float, float] = (0.8, 0.6, 0.1, 0.1),
) -> str:
    """What ``draw`` makes of an axis, as an element of the page. margins: left, bottom, right, top, inches."""
    import matplotlib

    with matplotlib.rc_context(style.rc()):
        figure = style.new_figure(*size, margins)
        draw(style.clean(figure.add_subplot()))
        return style.svg(figure)


def bits_of(config: str) -> float:
    """Weight bits of "w4a8" or "mixed_4.5"."""
    found = re.search(r"(?:^w|_)(\d+(?:\.\d+)?)", config)
    return float(found.group(1)) if found else style.WIDEST


def drop(rows: Sequence[Mapping[str, Any]], fp: Mapping[str, Any], errors: Sequence[float]) -> str:
    """Points of top-1 against float at every width, linear to one point and logarithmic beyond."""

    def draw(axis: Any) -> None:
        values = [row["top1"] - fp["top1"] for row in rows]
        colors = [style.color_of_width(row["w_bits"]) for row in rows]
        axis.bar(range(len(rows)), values, color=colors, yerr=errors, ecolor=style.INK, capsize=2, width=0.7)
        axis.axhline(0, color=style.INK, linewidth=0.8)
        axis.set_xticks(range(len(rows)), [row["config"] for row in rows], rotation=45 if len(rows) > 5 else 0)
        lowest, highest = min([0, *values]), max([0, *values])
        if lowest < -2:
            ticks = [t for t in (-100, -50, -20, -10, -5, -2, -1, 0, 1, 2, 5) if lowest * 1.6 <= t <= highest + 1]
            axis.set_yscale("symlog", linthresh=1, linscale=1)
            axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.set_ylabel("points of top-1")

    return drawn(draw)


def against_bytes(rows: Sequence[Mapping[str, Any]], fp: Mapping[str, Any]) -> str:
    """top-1 against the bytes of a model shipped at that width."""
    unit, name = (1e6, "MB") if max(row["size_bytes"] for row in rows) > 2e5 else (1e3, "kB")

    def draw(axis: Any) -> None:
        for row in rows:
            color = style.color_of_width(row["w_bits"])
            axis.plot(row["size_bytes"] / unit, row["top1"], "o", color=color, markersize=7)
            place = (row["size_bytes"] / unit, row["top1"])
            axis.annotate(row["config"], place, textcoords="offset points", xytext=(0, -13), ha="center", fontsize=8)
        axis.axhline(fp["top1"], color=style.INK, linewidth=0.8, linestyle=":")
        axis.annotate("float", (0.01, fp["top1"]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                      textcoords="offset points", fontsize=8)  # fmt: skip
        axis.margins(0.12, 0.2)
        axis.set(xlabel=name, ylabel="top-1, %")

    return drawn(draw)


def layers(errors: Mapping[str, float]) -> str:
    """Bars of the layers' errors, the worst first."""
    shown = sorted(errors.items(), key=lambda item: -item[1])[:MOST_LAYERS]

    def draw(axis: Any) -> None:
        axis.barh(range(len(shown)), [value for _, value in shown], color=style.CYCLE[0], height=0.7)
        axis.set_yticks(range(len(shown)), [name[-26:] for name, _ in shown], fontsize=8)
        axis.invert_yaxis()
        axis.set_xlabel("|y - y_float|² / |y_float|²")

    return drawn(draw, (4.5, 0.7 + 0.2 * len(shown)), (1.75, 0.45, 0.15, 0.1))


def heat(rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], label: str) -> str:
    """A map of logarithms, layers down and widths across; empty where nothing was measured or the value is zero."""

    def draw(axis: Any) -> None:
        shown = [[math.log10(v) if v and v > 0 else math.nan for v in line] for line in values]
        axis.grid(False)
        mesh = axis.pcolormesh(shown, cmap="cividis_r", edgecolors="face", linewidth=0.2)
        axis.set_xticks([n + 0.5 for n in range(len(columns))], columns, rotation=45)
        axis.set_yticks([n + 0.5 for n in range(len(rows))], [name[-26:] for name in rows], fontsize=7)
        axis.invert_yaxis()
        axis.figure.colorbar(mesh, ax=axis, label=f"log10 of {label}", shrink=0.8)

    return drawn(draw, (4.5, 1.0 + 0.17 * len(rows)), (1.6, 0.75, 0.15, 0.1))


def final_losses(metrics: Iterable[Mapping[str, str]]) -> dict[str, dict[str, float]]:
    """Width -> block -> mean loss over the last steps that were logged, blocks in the order of their fits."""
    return {
        width: {
            block: statistics.fmean([loss for _, loss in points][-max(1, round(LAST * len(points))) :])
            for block, points in blocks.items()
        }
        for width, blocks in sorted(_losses(metrics).items())
    }


def _losses(metrics: Iterable[Mapping[str, str]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Width -> block -> (iteration, loss)."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in metrics:
        for key, value in line.items():
            if key.startswith("loss/w") and value and line.get("block_name"):
                blocks = found.setdefault(key.removeprefix("loss/"), {})
                blocks.setdefault(line["block_name"], []).append((int(float(line.get("iter") or 0)), float(value)))
    return found


def _blocks(metrics: Iterable[Mapping[str, str]]) -> list[str]:
    """In the order of their fits."""
    return list(dict.fromkeys(line["block_name"] for line in metrics if line.get("block_name")))


def losses_at_end(metrics: Sequence[Mapping[str, str]]) -> str:
    """The last losses of every block, a line per width."""
    blocks, losses = _blocks(metrics), final_losses(metrics)

    def draw(axis: Any) -> None:
        for width, ends in losses.items():
            color = style.color_of_width(bits_of(width))
            there = sorted(ends, key=blocks.index)
            axis.plot([blocks.index(b) for b in there], [ends[b] for b in there], marker=".", color=color, label=width)
        axis.set_yscale("log")
        axis.set_xticks(range(len(blocks)), blocks, rotation=60, ha="right", fontsize=8)
        axis.legend(fontsize=8, ncols=2)

    return drawn(draw, (max(4.5, 0.22 * len(blocks)), 3.4), (0.65, 0.9, 0.1, 0.1))


def losses_over_time(metrics: Sequence[Mapping[str, str]]) -> str:
    """A small panel per block: the losses at each width over the iterations of its fit."""
    import matplotlib

    losses = _losses(metrics)
    blocks = _blocks(metrics)[:MOST_BLOCKS]
    across = min(4, len(blocks))
    down = math.ceil(len(blocks) / across)
    with matplotlib.rc_context(style.rc(8)):
        figure = style.new_figure(2.3 * across, 1.8 * down + 0.3, (0.5, 0.6, 0.1, 0.25))
        figure.subplots_adjust(wspace=0.4, hspace=0.5)
        for number, block in enumerate(blocks):
            axis = style.clean(figure.add_subplot(down, across, number + 1))
            points = {width: ends[block] for width, ends in sorted(losses.items()) if block in ends}
            first = min(iteration for of in points.values() for iteration, _ in of)
            for width, of in points.items():
                color = style.color_of_width(bits_of(width))
                axis.plot([i - first for i, _ in of], [v for _, v in of], color=color, linewidth=1, label=width,
                          marker="." if len(of) < 4 else "")  # fmt: skip
            axis.set_yscale("log")
            axis.minorticks_off()
            axis.set_title(block, fontsize=8)
        handles = {
            label: handle
            for axis in figure.axes
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="lower left", ncols=len(handles), fontsize=8)
        return style.svg(figure)


def values(found: Mapping[str, Any], what: str) -> str:
    """A histogram of a layer's float values over the levels that the bits leave."""

    def draw(axis: Any) -> None:
        edges, counts = found["edges"], found["counts"]
        axis.stairs(counts, edges, fill=True, color=style.CYCLE[5])
        axis.set_yscale("symlog", linthresh=10)
        step, (low, high) = found["step_size"], found["limits"]
        if found["bits"] <= DRAWN_BITS:
            for level in range(low, high + 1):
                axis.axvline(level * step, color=style.CYCLE[1], linewidth=0.8, linestyle="--")
        axis.set_title(f"{what}, {found['bits']} bits, step size {step:.3g}", fontsize=9)
        axis.set_ylabel("count")

    return drawn(draw, (4.5, 2.1), (0.6, 0.3, 0.1, 0.3))
