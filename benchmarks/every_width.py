"""Is every width better than nearest rounding, and what brings it there? Short runs of train.py, side by side.

    PTMQ_DATA=DIR python benchmarks/every_width.py --work FOLDER                # all pages
    PTMQ_DATA=DIR python benchmarks/every_width.py --pages equalization

- every_width: nearest, the default as decision 11 chose it, and the one before, on ResNet-20.
- equalization: what equalization and bias correction do for nearest rounding, on MobileOne-S0.
- attention, attention_vit_t: what reparametrization and rotation do for nearest rounding, on two transformers.
- stored_bits: what a plane more or less is worth, on ResNet-20.

One run of train.py a row, in a folder below FOLDER; what is finished there is not run again. The results go to
benchmarks/results/PAGE.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import weights_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SHORT = ["recon.iters=100", "recon.lr_activation=3e-3"]
CORRECTED = "method.bias_correction=after"
BEFORE = ["fold.equalize=false", "rounding.tolerance=null", "tune.iters=0"]  # as decision 13 found it

FEW = "bits.evaluate=[w2a4,w3a3,w4a4,w6a6,w8a8]"
ATTENTION = {
    "rtn": ["fold.reparam=false", "fold.rotate=false"],
    "rtn, reparametrized": ["fold.reparam=true", "fold.rotate=false"],
    "rtn, rotated": ["fold.reparam=false", "fold.rotate=true"],
    "rtn, reparametrized, rotated": ["fold.reparam=true", "fold.rotate=true"],
}


@dataclass(frozen=True)
class Page:
    """What a page compares. network: in words. shared: words of every command. rows: name -> words added to them."""

    title: str
    network: str
    shared: list[str]
    rows: dict[str, list[str]]


PAGES = {
    "every_width": Page(
        "Every width beside nearest rounding",
        "ResNet-20 on CIFAR-10",
        ["experiment=cifar_resnet20", "seed=0", "data.calibration_images=512"],
        {  # each at the rate of the rounding that suits its loss
            "rtn": ["method=rtn"],
            "ptmq, one plane for 4 to 8": [
                *SHORT, *BEFORE, "recon.lr_rounding=3e-2", "method.bias_correction=none", "loss.relative=false",
                "rounding.planes=[[2],[3],[4,5,6,7,8]]",
            ],
            "ptmq": [*SHORT, *BEFORE, "recon.lr_rounding=5e-2"],
        },
    ),
    "equalization": Page(
        "Equalization and bias correction before anything is learned",
        "MobileOne-S0 on ImageNet",
        ["experiment=imagenet_mobileone", "method=rtn", "seed=0", "data.calibration_images=256"],
        {
            "rtn": ["fold.equalize=false"],
            "rtn, biases corrected": ["fold.equalize=false", CORRECTED],
            "rtn, equalized": ["fold.equalize=true"],
            "rtn, equalized, biases corrected": ["fold.equalize=true", CORRECTED],
        },
    ),
    "attention": Page(
        "Reparametrization and rotation before anything is learned",
        "small ViT on CIFAR-10",
        ["experiment=cifar_vit", "method=rtn", "placement.gelu=table", "seed=0"],
        ATTENTION,
    ),
    "attention_vit_t": Page(
        "Reparametrization and rotation before anything is learned",
        "ViT-Tiny on ImageNet",
        ["experiment=imagenet_vit_t", "method=rtn", "placement.gelu=table", "seed=0", "data.val_images=350", FEW],
        ATTENTION,
    ),
    "stored_bits": Page(
        "Stored bits against error",
        "ResNet-20 on CIFAR-10",
        ["experiment=cifar_resnet20", "recon=brief", "seed=0"],
        {
            "no plane": ["rounding=nearest"],
            "one plane for all": ["rounding=shared"],
            "planes for 2, 3, 4 (the default)": [],
            "planes for 2, 3, 4 and for 5 to 8": ["rounding.planes=[[2],[3],[4],[5,6,7,8]]"],
            "a plane for each": ["rounding=per_width"],
        },
    ),
}  # fmt: skip
FIGURES = {
    "top1": "Top-1, %",
    "agreement": "Agreement with the float network, %",
    "logit_error": "Relative logit error",
}
DIGITS = {"top1": 1, "agreement": 1, "logit_error": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "outputs" / "every_width")
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES))
    options = parser.parse_args()
    for name in options.pages:
        asked, work = PAGES[name], options.work.resolve() / name
        found = {row: measured([*asked.shared, *added], work / row) for row, added in asked.rows.items()}
        write_atomically(RESULTS / f"{name}.json", json.dumps(found, indent=2) + "\n")
        write_atomically(RESULTS / f"{name}.md", page(name, found))


def measured(command: list[str], folder: Path) -> dict[str, Any]:
    """What one run of train.py comes to, by width."""
    if not (folder / "results.json").exists():
        run = [sys.executable, "train.py", *command, f"hydra.run.dir='{folder}'"]
        subprocess.run(run, cwd=ROOT, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    results = read_results(folder / "results.json")
    return {
        "command": command,
        "evaluation_images": results["evaluation_images"],
        "fp": results["fp"]["top1"],
        "bits": stored_bits(folder / "model"),
        "rows": {row["config"]: {figure: row[figure] for figure in FIGURES} for row in results["rows"]},
    }


def stored_bits(model: Path) -> float:
    """Bits of the artifact's file for each weight of its layers; steps, biases and what else it holds included."""
    weights = sum(math.prod(weight.shape) for _, weight in weights_of(load(model)))
    return 8 * (model / "model.safetensors").stat().st_size / weights


def page(name: str, found: dict[str, dict[str, Any]]) -> str:
    """A table for each figure, and the commands."""
    first = next(iter(found.values()))
    widths = list(first["rows"])
    parts = [
        f"# {PAGES[name].title}",
        f"Made by `PTMQ_DATA=DIR python benchmarks/every_width.py --pages {name}`; {PAGES[name].network}, one seed, "
        f"{first['evaluation_images']} evaluation images, float {first['fp']:.1f} %.",
    ]
    for figure, title in FIGURES.items():
        stored = ["bits a weight"] * all("bits" in result for result in found.values())
        lines = [f"| method | {' | '.join([*stored, *widths])} |", "|---" + "|---:" * len([*stored, *widths]) + "|"]
        for row, result in found.items():
            cells = [f"{result['bits']:.1f}" for _ in stored]
            cells += [f"{result['rows'][width][figure]:.{DIGITS[figure]}f}" for width in widths]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        parts += [f"## {title}", "\n".join(lines)]
    commands = [f"- {row}: `python train.py {' '.join(result['command'])}`" for row, result in found.items()]
    return "\n\n".join([*parts, "## Commands", "\n".join(commands)]) + "\n"


if __name__ == "__main__":
    main()
