"""How far nearest rounding is off in the layers of a network, what zero points take off it, and which widths get a
plane of their own by it.

    PTMQ_DATA=DIR python benchmarks/weight_errors.py

The error of a layer at a width: sum (W^ - W)^2 / sum W^2 of its weight, made ready as in the default method,
at the step sizes that the search finds. Where it is above `rounding.tolerance`, the layer learns a rounding for that
width, too. Beside it the same with a zero point for each channel that gains by one (step_size.zero_points). Results:
benchmarks/results/weight_errors.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import ptmq_lightning  # noqa: F401  # isort: skip  # the torchvision cure comes first

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy_figure import TITLES
from benchmarks.sensitivity import rounded
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.quant.planes import error_of
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import weights_of
from ptmq_lightning.runtime.spec import MIN_BITS, MOST_ZERO
from ptmq_lightning.runtime.weights import MultiBitWeight

FILE = Path(__file__).resolve().parent / "results" / "weight_errors.json"
IMAGES = 64  # enough for the fold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=TITLES, default=list(TITLES))
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in parser.parse_args().experiments:
        found[name] = rows(name)
        write_atomically(FILE, json.dumps(found, indent=2) + "\n")
    write_atomically(FILE.with_suffix(".md"), page(found))


def rows(experiment: str) -> list[dict[str, Any]]:
    """For each width, over the layers that are not pinned to one: the median and the largest error, the share of the
    weights that are in layers above the tolerance, and with zero points the median and the largest error (None where
    the width can have none)."""
    words = [f"experiment={experiment}", f"data.calibration_images={IMAGES}", "step_size.zero_points=[]"]
    config = configuration(words)
    model, _ = rounded(config)
    weights = [w for block in model.blocks for n, w in weights_of(block) if not model.layers[n].pinned]
    moved = [with_zero_points(weight) for weight in weights]
    tolerance, result = config.rounding.tolerance, []
    for bits in weights[0].widths:
        errors = [error_of(weight, bits) for weight in weights]
        above = sum(w.latent.numel() for w, error in zip(weights, errors, strict=True) if error > tolerance)
        share = above / sum(w.latent.numel() for w in weights)
        row = {"bits": bits, "median": statistics.median(errors), "largest": max(errors), "above": share}
        own = [error_of(weight, bits) for weight in moved] if bits <= MOST_ZERO else None
        row["moved"] = own and {"median": statistics.median(own), "largest": max(own)}
        result.append(row)
    return result


def with_zero_points(weight: MultiBitWeight) -> MultiBitWeight:
    """The same weight rounded to nearest on grids that may have zero points."""
    how = StepSize(zero_points=[*range(MIN_BITS, MOST_ZERO + 1)])
    steps, zeros = weight_grids(weight.at(None), weight.widths, how)
    return MultiBitWeight(weight.latent, weight.latent_step, weight.widths, steps, zero_points=zeros)


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """benchmarks/results/weight_errors.md."""
    lines = [
        "# Nearest rounding's error, layer by layer",
        "",
        "Made by `PTMQ_DATA=DIR python benchmarks/weight_errors.py`: share of a weight's power, over the layers. The",
        "first three figures are of symmetric grids, the others of grids with zero points.",
        "",
        "Symmetric grids and grids with zero points",
        "",
        "| experiment | bits | median layer | worst layer | weights in layers above `rounding.tolerance`, % | "
        "median, zero points | worst, zero points |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, widths in found.items():
        for row in widths:
            figures = f"{row['median']:.5f} | {row['largest']:.5f} | {100 * row['above']:.0f}"
            moved = row["moved"] and f"{row['moved']['median']:.5f} | {row['moved']['largest']:.5f}"
            lines.append(f"| {name} | {row['bits']} | {figures} | {moved or '- | -'} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
