"""How long `ptmq allocate DIR --front` works on a network at 224 px: sensitivity, searches and answers of the images.

    python benchmarks/fronts.py                                          # ResNet-18 and DeiT-S, 256 images
    python benchmarks/fronts.py --models deit_s --images 16 --threads 2

Random weights and images of noise: their time alone means something. Seconds are the processor's, of all threads. The
time of the sensitivity and of the answers grows with the images, and that of the answers with the assignments, of which
several may be the same. The table counts both up to the command's own images and to assignments that all differ.
Results: benchmarks/results/fronts.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sensitivity import of_noise  # noqa: E402
from ptmq_lightning.allocate.keys import AllocateKeys  # noqa: E402
from ptmq_lightning.device.allocate_arguments import COUNT, SENSITIVITY  # noqa: E402
from ptmq_lightning.device.allocation import Allocation  # noqa: E402
from ptmq_lightning.runtime.files import write_atomically  # noqa: E402

FILE = ROOT / "benchmarks" / "results" / "fronts.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_s"])
    parser.add_argument("--images", type=int, default=COUNT)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.models:
        found[name] = {"threads": options.threads, **measure(name, options.images)}
        print(name, found[name], flush=True)
        write_atomically(FILE, json.dumps(found, indent=1) + "\n")
        write_atomically(FILE.with_suffix(".md"), table(found))


def measure(name: str, images: int) -> dict[str, Any]:
    """The command's two parts, one after the other, on so many images."""
    model, x = of_noise(name, images)
    asked = min(images, SENSITIVITY)
    allocation = Allocation(model, x, AllocateKeys(name="milp", sensitivity_images=asked, swap_images=images))
    sensitivity, of_layers = timed(lambda: allocation.sensitivity)
    made, searched = timed(lambda: [assignment for _, _, assignment in allocation.front()])
    _, answered = timed(lambda: [allocation.judge.ask(model.resolve(pair)) for pair in model.pairs])
    return {
        "layers": len(sensitivity),
        "pairs": len(model.pairs),
        "assignments": len(model.pairs) + len(made),
        "different": allocation.judge.asked,
        "images": {"sensitivity": asked, "answers": images},
        "seconds": {"sensitivity": of_layers, "answers": searched + answered},
    }


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Its result and its processor seconds."""
    started = time.process_time()
    return call(), round(time.process_time() - started, 2)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        f"| model | layers | pairs | assignments | sensitivity, {SENSITIVITY} images, min "
        f"| searches and answers, {COUNT} images, min | whole, min | images measured | assignments measured |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    for name, row in found.items():
        images, seconds = row["images"], row["seconds"]
        parts = [
            seconds["sensitivity"] * SENSITIVITY / images["sensitivity"],
            seconds["answers"] * COUNT / images["answers"] * row["assignments"] / row["different"],
        ]
        minutes = " | ".join(f"{part / 60:.1f}" for part in (*parts, sum(parts)))
        counts = " | ".join(str(row[key]) for key in ("layers", "pairs", "assignments"))
        lines.append(
            f"| {name} | {counts} | {minutes} | {images['sensitivity']}, {images['answers']} | {row['different']} |"
        )
    note = "Processor minutes of all threads; random weights, images of noise, 224 px."
    return "\n".join([*lines, "", note]) + "\n"


if __name__ == "__main__":
    main()
