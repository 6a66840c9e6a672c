r"""The picture of docs/sweeps.md, docs/dashboard.png: what the W&B dashboard shows of a sweep, from its offline files.

    python train.py -m mixer=none,case1 seed=0 recon=smoke recon.iters=30 recon.log_every=2 data.val_images=300 \
        logger=wandb logger.mode=offline
    python benchmarks/dashboard_picture.py outputs/sweep/digits_resnet

It is drawn by matplotlib, not by W&B: the same panels with the same numbers and colors, for who wants to see what there
is before making an account.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.wandb_offline import OfflineRun, read_offline  # noqa: E402
from ptmq_lightning.report import style  # noqa: E402

PICTURE = ROOT / "docs" / "dashboard.png"
SHOWN_WIDTH = "w4a4"  # of the panel of each block's losses


def draw(runs: list[OfflineRun]) -> Any:
    """Six panels; a run has one color in the panels that compare runs, a width one in the others."""
    with matplotlib.rc_context(style.rc(8)):
        figure = style.new_figure(11, 6)
        axes = [style.clean(axis) for axis in figure.subplots(2, 3).flatten()]
        first = runs[0]
        _costs(axes[0], runs)
        _losses(axes[1], first)
        for number, run in enumerate(runs):
            _curve(axes[2], run, "iter", "fit/settled", style.color_of(run.name, number), run.name)
        _blocks(axes[3], first)
        for axis, kind, name in ((axes[4], "a", "activations"), (axes[5], "w", "weights")):
            for bits in range(2, 9):
                _curve(
                    axis, first, "block", f"step_sizes/{kind}{bits}", style.color_of_width(bits), f"{kind}{bits}", "."
                )
            axis.axhline(1, color=style.INK, linewidth=0.6, linestyle=":")
            axis.set_title(f"step sizes of {name}, learned / calibrated")
        axes[2].set_title("settled share of the rounding")
        for axis in axes:
            axis.legend(fontsize=6, ncols=2)
    return figure


def _costs(axis: Any, runs: list[OfflineRun]) -> None:
    widths = [name.removeprefix("drop/") for name in sorted(runs[0].summary) if name.startswith("drop/w")]
    for number, run in enumerate(runs):
        places = [place + (number - (len(runs) - 1) / 2) * 0.8 / len(runs) for place in range(len(widths))]
        drops = [run.summary[f"drop/{width}"] for width in widths]
        axis.bar(places, drops, 0.8 / len(runs), color=style.color_of(run.name, number), label=run.name)
    axis.set_xticks(range(len(widths)), widths, rotation=45)
    axis.set_title("points of top-1 below float")


def _losses(axis: Any, run: OfflineRun) -> None:
    for width in sorted({name for row in run.history for name in row if name.startswith("loss/w")}):
        _curve(axis, run, "iter", width, style.color_of_width(int(width[6])), width.removeprefix("loss/"), ".")
    axis.set_yscale("log")
    axis.set_title(f"{run.name}: loss of each width")


def _blocks(axis: Any, run: OfflineRun) -> None:
    names = sorted({n for row in run.history for n in row if n.startswith("losses_") and n.endswith(SHOWN_WIDTH)})
    for number, name in enumerate(names):
        label = name.split("/")[0].removeprefix("losses_")
        _curve(axis, run, "block_iter", name, style.CYCLE[number % len(style.CYCLE)], label, ".")
    axis.set_yscale("log")
    axis.set_title(f"{run.name}: loss of each block at {SHOWN_WIDTH}")


def _curve(axis: Any, run: OfflineRun, x: str, y: str, color: Any, label: str, marker: str = "") -> None:
    points = [(row[x], row[y]) for row in run.history if x in row and y in row]
    if points:
        axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1, marker=marker, markersize=4)
    axis.set_xlabel(x)


def main() -> None:
    parser = argparse.ArgumentParser(description="docs/dashboard.png from the offline W&B files of a sweep.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=PICTURE)
    options = parser.parse_args()
    runs = [run for run in read_offline(options.folder) if run.ended]
    options.out.write_bytes(style.on_white(draw(runs), "png"))
    print(f"{options.out}: {', '.join(run.name for run in runs)}")


if __name__ == "__main__":
    main()
