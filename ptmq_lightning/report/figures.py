"""The figure of a table over runs: what each setting costs at each width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ptmq_lightning.report import style
from ptmq_lightning.report.tables import FLOAT, Line

NAMES = {
    "top1": "top-1, %", "top5": "top-5, %", "drop": "points of top-1 below float",
    "agreement": "agreement with float, %", "sqnr_db": "SQNR, dB", "logit_error": "relative logit error",
    "size_bytes": "bytes", "bit_ops": "bit operations", "seconds": "seconds of a run",
}  # fmt: skip


def compare(lines: Sequence[Line], by: Sequence[str], values: Sequence[str] = ("drop", "logit_error")) -> Any:
    """A panel per figure: a line per setting over the widths, with the standard deviation over its runs.

    The drop is linear up to one point and logarithmic beyond, so that half a point is seen beside fifty.
    """
    import matplotlib

    with matplotlib.rc_context(style.rc()):
        figure = style.new_figure(4.6 * len(values), 3.8)
        axes = figure.subplots(1, len(values), squeeze=False)[0]
        quantized = [line for line in lines if line.config != FLOAT]
        configs = list(dict.fromkeys(line.config for line in quantized))
        for axis, value in zip(axes, values, strict=True):
            _panel(axis, quantized, configs, by, value)
            _baseline(axis, [line for line in lines if line.config == FLOAT], value)
        handles, labels = axes[0].get_legend_handles_labels()
        if len(labels) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), title=" x ".join(by))
    return figure


def _panel(axis: Any, lines: Sequence[Line], configs: Sequence[str], by: Sequence[str], value: str) -> None:
    style.clean(axis)
    settings = list(dict.fromkeys(line.settings for line in lines))
    for number, name in enumerate(settings):
        label = style.label_of(name, by)
        cells = {line.config: line.cells[value] for line in lines if line.settings == name}
        points = [(place, cells.get(config)) for place, config in enumerate(configs)]
        shift = 0.12 * (number - (len(settings) - 1) / 2) / max(1, len(settings) / 4)
        axis.errorbar(
            [place + shift for place, _ in points],
            [float("nan") if cell is None else cell.mean for _, cell in points],  # no line across what is not measured
            yerr=[0.0 if cell is None else cell.spread or 0.0 for _, cell in points],
            label=label,
            color=style.color_of(label, number),
            linestyle=style.dash_of(number),
            marker=style.MARKERS[number % len(style.MARKERS)],
            markersize=4,
            linewidth=1.2,
            capsize=2,
        )
    axis.set_xticks(range(len(configs)), configs, rotation=45 if len(configs) > 5 else 0)
    axis.set_title(NAMES.get(value, value))
    _scale(axis, value, [cell.mean for line in lines if (cell := line.cells[value])])


def _scale(axis: Any, value: str, means: Sequence[float]) -> None:
    if value == "logit_error" and all(mean > 0 for mean in means):
        axis.set_yscale("log")
    if value == "drop" and max(map(abs, means), default=0) > 2:
        ticks = [tick for tick in (-2, -1, 0, 1, 2, 5, 10, 20, 50, 100) if min(means) - 1 < tick < max(means) * 1.5]
        axis.set_yscale("symlog", linthresh=1, linscale=1)
        axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    if value == "drop":
        axis.axhline(0, color=style.INK, linewidth=0.8, linestyle=":")
        axis.invert_yaxis()  # better is up, as of every other figure but errors


def _baseline(axis: Any, lines: Sequence[Line], value: str) -> None:
    if len(lines) == 1 and (cell := lines[0].cells.get(value)) is not None:
        axis.axhline(cell.mean, color=style.INK, linewidth=0.8, linestyle=":", label="float")
