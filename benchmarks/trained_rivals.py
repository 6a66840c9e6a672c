"""The rivals that train with labels, ResNet-20 / CIFAR-10: one float network, one set of images, as many epochs.

    PTMQ_DATA=DIR python benchmarks/trained_rivals.py --epochs 2 --seeds 0 1 2

Each cell is a run of train.py in outputs/trained_rivals; a cell that is there with the same command is not run again.
`nearest` is the same network without any training. Results: benchmarks/results/trained_rivals.{json,md}, written after
every cell from the runs' results.json and finetune.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAIRS = ("w2a4", "w3a3", "w4a4", "w6a6", "w8a8")
COMMON = [
    "experiment=cifar_resnet20",
    "bits.groups=[[[2,4]],[[3,3]],[[4,4]],[[6,6]],[[8,8]]]",
    f"bits.evaluate=[{','.join(PAIRS)}]",
]
METHODS = {
    "nearest": ["rounding=nearest", "step_size=free", "step_size.learn=false"],
    "robustquant": ["method=robustquant"],
    "multiquant": ["method=multiquant"],
    "any_precision": ["method=any_precision"],
}
# glibc hands big blocks back and faults them in again at each step: a third of the time of these small layers
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    file = RESULTS / "trained_rivals.json"
    cells: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for seed in options.seeds:
        for method in options.methods:
            name = f"{method} seed={seed}"
            training = [] if method == "nearest" else [f"finetune.epochs={options.epochs}"]
            images = f"data.calibration_images={options.images}"
            command = [*COMMON, *METHODS[method], *training, images, f"seed={seed}"]
            if cells.get(name, {}).get("command") != command:
                folder = ROOT / "outputs" / "trained_rivals" / f"{method}{seed}"
                arguments = [sys.executable, "train.py", *command, f"hydra.run.dir={folder}"]
                subprocess.run(arguments, cwd=ROOT, env=ALLOCATOR | os.environ, check=True)
                cells[name] = {"command": command, **read(folder)}
                RESULTS.mkdir(exist_ok=True)
                file.write_text(json.dumps(cells, indent=1) + "\n")
                (RESULTS / "trained_rivals.md").write_text(page(cells, options.epochs, options.images))
            print(name, {row["config"]: row["top1"] for row in cells[name]["rows"]}, flush=True)


def read(folder: Path) -> dict[str, Any]:
    """What the two records of a run say."""
    results = json.loads((folder / "results.json").read_text())
    costs = folder / "finetune.json"
    kept = ("method", "seed", "fp", "seconds", "peak_memory_bytes", "evaluation_images", "rows")
    return {key: results[key] for key in kept} | ({"costs": json.loads(costs.read_text())} if costs.exists() else {})


def page(cells: dict[str, Any], epochs: int, images: int) -> str:
    """The table as Markdown: mean over seeds (and half the range), then what each method costs."""
    methods = [method for method in METHODS if any(name.startswith(f"{method} ") for name in cells)]
    grouped = {m: [cell for name, cell in cells.items() if name.startswith(f"{m} ")] for m in methods}
    first = next(iter(cells.values()))
    lines = [
        "# The rivals that train, ResNet-20 / CIFAR-10",
        "",
        f"`python benchmarks/trained_rivals.py --epochs {epochs} --images {images}`: {images} training images with "
        f"labels, {epochs} epochs; {first['evaluation_images']} evaluation images, float {first['fp']['top1']:.1f}. "
        "Cells: top-1 / agreement with the float network / relative logit error, mean over seeds (with half the range "
        "of top-1).",
        "",
        "| method | seeds | " + " | ".join(pair.upper() for pair in PAIRS) + " |",
        "|---|---|" + "---|" * len(PAIRS),
    ]
    for method, runs in grouped.items():
        lines.append(f"| {method} | {len(runs)} | " + " | ".join(cell(runs, pair) for pair in PAIRS) + " |")
    lines += ["", *costs(grouped)]
    return "\n".join(lines) + "\n"


def cell(runs: list[dict[str, Any]], pair: str) -> str:
    rows = [next(row for row in run["rows"] if row["config"] == pair) for run in runs]
    top1, agreement, error = ([row[key] for row in rows] for key in ("top1", "agreement", "logit_error"))
    spread = f" ±{(max(top1) - min(top1)) / 2:.1f}" if len(runs) > 1 else ""
    return f"{statistics.mean(top1):.1f}{spread} / {statistics.mean(agreement):.1f} / {statistics.mean(error):.3f}"


def costs(grouped: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Seconds, memory, storage, the switch, and top-1 on training images, from the first run of each method."""
    lines = [
        "| method | labels | training s | peak MiB | stored KiB, all widths | switch ms | statistics at a switch "
        "| top-1 on training images " + ", ".join(pair.upper() for pair in PAIRS) + " |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, runs in grouped.items():
        if "costs" not in (run := runs[0]):
            continue
        c = run["costs"]
        kind = c["statistics"]
        note = kind["kind"] + (f", {kind['images']} images, {kind['milliseconds']:.0f} ms" if kind["images"] else "")
        seen = ", ".join(f"{c['train_top1'][pair]:.1f}" for pair in PAIRS)
        seconds = statistics.mean(run["costs"]["seconds"] for run in runs)
        lines.append(
            f"| {method} | {c['labels']} | {seconds:.0f} | {c['peak_memory_bytes'] / 2**20:.0f} "
            f"| {c['stored_bytes'] / 2**10:.0f} | {c['switch_milliseconds']:.1f} | {note} | {seen} |"
        )
    return lines


if __name__ == "__main__":
    main()
