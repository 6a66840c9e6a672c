"""Is every width better than nearest rounding? Nearest, the default, and the default as it was, in a short fit.

    PTMQ_DATA=DIR python benchmarks/every_width.py --work FOLDER

One run of train.py a row, in a folder below FOLDER; what is finished there is not run again. The results go to
benchmarks/results/every_width.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "every_width.json"
SHARED = ["experiment=cifar_resnet20", "seed=0", "data.calibration_images=512"]
SHORT = ["recon.iters=100", "recon.lr_activation=3e-3"]
ROWS = {  # each at the rate of the rounding that suits its loss
    "rtn": ["method=rtn"],
    "ptmq, one plane for 4 to 8": [
        *SHORT, "recon.lr_rounding=3e-2", "method.bias_correction=none", "loss.relative=false",
        "rounding.planes=[[2],[3],[4,5,6,7,8]]",
    ],
    "ptmq": [*SHORT, "recon.lr_rounding=5e-2"],
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
    work = parser.parse_args().work.resolve()
    found = {name: measured([*SHARED, *added], work / name) for name, added in ROWS.items()}
    write_atomically(FILE, json.dumps(found, indent=2) + "\n")
    write_atomically(FILE.with_suffix(".md"), page(found))


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
        "rows": {row["config"]: {figure: row[figure] for figure in FIGURES} for row in results["rows"]},
    }


def page(found: dict[str, dict[str, Any]]) -> str:
    """A table for each figure, and the commands."""
    first = next(iter(found.values()))
    widths = list(first["rows"])
    parts = [
        "# Every width beside nearest rounding",
        "Made by `PTMQ_DATA=DIR python benchmarks/every_width.py`; ResNet-20 on CIFAR-10, one seed, "
        f"{first['evaluation_images']} evaluation images, float {first['fp']:.1f} %.",
    ]
    for figure, title in FIGURES.items():
        lines = [f"| method | {' | '.join(widths)} |", "|---" + "|---:" * len(widths) + "|"]
        for name, result in found.items():
            cells = [f"{result['rows'][width][figure]:.{DIGITS[figure]}f}" for width in widths]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts += [f"## {title}", "\n".join(lines)]
    commands = [f"- {name}: `python train.py {' '.join(result['command'])}`" for name, result in found.items()]
    return "\n\n".join([*parts, "## Commands", "\n".join(commands)]) + "\n"


if __name__ == "__main__":
    main()
