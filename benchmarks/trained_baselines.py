"""The baselines that train with labels beside PTMQ, ResNet-20 / CIFAR-10: one float network, one set of images.

    PTMQ_DATA=DIR python benchmarks/trained_baselines.py --epochs 6 --seeds 0 1 2

Each cell is a run of train.py in outputs/trained_baselines; a cell that is there, of a command that means the same, is
not run again. `nearest` is the same network without any training. Results:
benchmarks/results/trained_baselines.{json,md}, written after every cell from the runs' results.json and finetune.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from accuracy import meaning_of, timed

from ptmq_lightning.artifact.artifact import load
from ptmq_lightning.finetune.switching import switch_milliseconds
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAIRS = ("w2a4", "w3a3", "w4a4", "w6a6", "w8a8")
COMMON = [
    "experiment=cifar_resnet20",
    "bits.groups=[[w2a4],[w3a3],[w4a4],[w6a6],[w8a8]]",
    f"bits.evaluate=[{','.join(PAIRS)}]",
]
METHODS = {
    "nearest": ["rounding=nearest", "step_size=free"],
    "robustquant": ["method=robustquant"],
    "multiquant": ["method=multiquant"],
    "any_precision": ["method=any_precision"],
    "ptmq": ["method=ptmq"],
}
TRAINED = ("robustquant", "multiquant", "any_precision")
# glibc hands big blocks back and faults them in again at each step: a third of the time of these small layers
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    file = RESULTS / "trained_baselines.json"
    cells: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for seed in options.seeds:
        for method in options.methods:
            name = f"{method} seed={seed}"
            training = [f"finetune.epochs={options.epochs}"] if method in TRAINED else []
            images = f"data.calibration_images={options.images}"
            command = [*COMMON, *METHODS[method], *training, images, f"seed={seed}"]
            if cells.get(name, {}).get("meaning") != (meaning := meaning_of(tuple(command))):
                folder = ROOT / "outputs" / "trained_baselines" / f"{method}{seed}"
                run = ["train.py", *command, f"hydra.run.dir={folder}"]
                code, cpu = timed(run, env=ALLOCATOR | os.environ)
                if code:
                    return code
                cells[name] = {"command": command, "meaning": meaning, "cpu_seconds": cpu, **read(folder)}
                write_atomically(file, json.dumps(cells, indent=1) + "\n")
            write_atomically(RESULTS / "trained_baselines.md", page(cells, options.epochs, options.images))
            print(name, {row["config"]: row["top1"] for row in cells[name]["rows"]}, flush=True)
    return 0


def read(folder: Path) -> dict[str, Any]:
    """What the records of a run say; of a method that needs no labels, what its artifact does."""
    results = json.loads((folder / "results.json").read_text())
    costs = folder / "finetune.json"
    kept = ("method", "seed", "fp", "seconds", "peak_memory_bytes", "evaluation_images", "rows")
    found = json.loads(costs.read_text()) if costs.exists() else artifact_costs(folder)
    return {key: results[key] for key in kept} | {"costs": found}


def artifact_costs(folder: Path) -> dict[str, Any]:
    model = load(folder / "model")
    return {
        "labels": 0,
        "stored_bytes": sum(file.stat().st_size for file in (folder / "model").iterdir()),
        "switch_milliseconds": switch_milliseconds(model, model.pairs),
        "statistics": {"kind": "folded", "images": 0},
        "train_top1": None,
    }


def page(cells: dict[str, Any], epochs: int, images: int) -> str:
    """The table as Markdown: mean over seeds (and half the range), then what each method costs."""
    methods = [method for method in METHODS if any(name.startswith(f"{method} ") for name in cells)]
    grouped = {m: [cell for name, cell in cells.items() if name.startswith(f"{m} ")] for m in methods}
    first = next(iter(cells.values()))
    seeds = " ".join(map(str, sorted({cell["seed"] for cell in cells.values()})))
    lines = [
        "# The baselines that train, ResNet-20 / CIFAR-10",
        "",
        f"`python benchmarks/trained_baselines.py --epochs {epochs} --images {images} --seeds {seeds}`: {images} "
        f"training images, with labels and {epochs} epochs where a method trains; {first['evaluation_images']} "
        f"evaluation images, float {first['fp']['top1']:.1f}. Cells: top-1 / agreement with the float network / "
        "relative logit error, mean over seeds (with half the range of top-1).",
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
    """Seconds, memory, storage, the switch, and top-1 on training images; all but seconds of a first run."""
    lines = [
        "CPU seconds are of the whole process, evaluation included, mean over seeds. The baselines' authors train tens "
        "of epochs on whole data sets; the table tells what they make of the images that PTMQ is given.",
        "",
        "| method | labels | CPU s | of ptmq's | peak MiB | stored KiB, all widths | switch ms "
        "| statistics at a switch | top-1 on training images " + ", ".join(pair.upper() for pair in PAIRS) + " |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    spent = {method: statistics.mean(run["cpu_seconds"] for run in runs) for method, runs in grouped.items()}
    for method, runs in grouped.items():
        c = runs[0]["costs"]
        kind = c["statistics"]
        note = kind["kind"] + (f", {kind['images']} images, {kind['milliseconds']:.0f} ms" if kind["images"] else "")
        seen = ", ".join(f"{c['train_top1'][pair]:.1f}" for pair in PAIRS) if c["train_top1"] else "-"
        share = f"{spent[method] / spent['ptmq']:.2f}" if "ptmq" in spent else "-"
        lines.append(
            f"| {method} | {c['labels']} | {spent[method]:.0f} | {share} | {runs[0]['peak_memory_bytes'] / 2**20:.0f} "
            f"| {c['stored_bytes'] / 2**10:.0f} | {c['switch_milliseconds']:.1f} | {note} | {seen} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
