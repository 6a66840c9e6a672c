"""One color for each method, setting and width in every figure, told apart by color-blind readers too.

Settings have the colors of Okabe and Ito ("Color universal design", 2008), widths those of cividis (Nunez et al.,
2018), dark for narrow ones. Figures of a page are drawn with two stand-ins, for ink and for lines of a grid, which
become the colors of the page's scheme.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

METHODS = {
    "ptmq": "#0072B2", "ptmq_paper": "#56B4E9", "qdrop": "#D55E00", "brecq": "#E69F00", "rtn": "#7F7F7F",
    "adaround": "#CC79A7", "genie": "#009E73", "flexround": "#A0522D", "any_precision": "#8C6BB1",
    "multiquant": "#C7A500", "robustquant": "#4B9CA3",
}  # fmt: skip
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A0522D", "#7F7F7F")
MARKERS, DASHES = "osD^vPX*", ("-", "--", ":")
INK, GRID = "#010203", "#040506"  # stand-ins
QUIET = "#dddddd"  # of a grid on white
NARROWEST, WIDEST = 2, 8


def color_of(name: str, number: int) -> str:
    """Of a method by its name (a label of several settings that begins with one too), else of the line's number."""
    return METHODS.get(name.split("+")[0].split(", ")[0], CYCLE[number % len(CYCLE)])


def dash_of(number: int) -> str:
    """Of a line by its number: another one when the colors begin anew."""
    return DASHES[number // len(CYCLE) % len(DASHES)]


def color_of_width(bits: float) -> Any:
    """Of a number of weight bits."""
    from matplotlib import colormaps

    share = (min(max(bits, NARROWEST), WIDEST) - NARROWEST) / (WIDEST - NARROWEST)
    return colormaps["cividis"](0.25 + 0.7 * share)  # seen on white and on black


def clean(axis: Any) -> Any:
    """An axis without a box, with a quiet grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color=GRID, linewidth=0.6)
    axis.set_axisbelow(True)
    return axis


def rc(size: float = 9) -> Any:
    """Settings of matplotlib for a figure of a page."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    plain = {"font.size": size, "axes.titlesize": size + 1, "legend.frameon": False, "svg.fonttype": "none"}
    return {**plain, **dict.fromkeys(ink, INK), "svg.hashsalt": "ptmq", "font.family": "sans-serif"}


def svg(figure: Any) -> str:
    """The figure as an element of a page, in the colors of its scheme; the same bytes for the same values."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(rc()):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    found = text.getvalue()[text.getvalue().index("<svg") :]
    return found.replace(INK, "currentColor").replace(GRID, "var(--line)")


def on_white(figure: Any, kind: str) -> bytes:
    """The figure as a file of its own ("png" or "svg")."""
    import matplotlib
    from matplotlib.lines import Line2D

    for line in figure.findobj(Line2D):
        if line.get_color() == GRID:
            line.set_color(QUIET)
    content = io.BytesIO()
    fixed = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(rc()):
        figure.savefig(content, format=kind, dpi=150, metadata=fixed)
    return content.getvalue()


def new_figure(width: float, height: float, margins: Sequence[float] | None = None) -> Any:
    """An empty figure (inches).

    margins: left, bottom, right, top (inches); None: matplotlib finds them, which takes three times as long.
    """
    from matplotlib.figure import Figure

    if margins is None:
        return Figure(figsize=(width, height), layout="constrained")
    figure, (left, bottom, right, top) = Figure(figsize=(width, height)), margins
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    return figure


def label_of(settings: Sequence[str], by: Sequence[str]) -> str:
    """What a line's setting is called in a legend: "case3", "case3, loss=mse"."""
    first, *rest = settings or ("all",)
    return ", ".join([first, *(f"{key}={value}" for key, value in zip(by[1:], rest, strict=True))])
