"""What comes before the fits: processor seconds of insert and calibrate, in the plain form of the searches and in ours.

    python benchmarks/phases.py                        # ResNet-18 and DeiT-S at 224 px, 256 images
    python benchmarks/phases.py --models resnet18 --images 32

The plain form looks at every candidate on every value (tests/quant/plain.py). Both run in one process, one after the
other, on one thread; weights are random and images are noise, which changes no cost. Results go to
benchmarks/results/phases.{json,md}, model by model.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.quant import insert, steps
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel, passthrough

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.quant import plain  # noqa: E402  (of the source tree, not of the package)

FILE = ROOT / "benchmarks" / "results" / "phases.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_s"])
    parser.add_argument("--images", type=int, default=256, help="of the search of the activation steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.models:
        found[name] = measure(name, options.images)
        print(name, found[name])
        write_atomically(FILE, json.dumps(found, indent=2) + "\n")
        write_atomically(FILE.with_suffix(".md"), table(found))


def measure(name: str, count: int) -> dict[str, Any]:
    """Seconds of both phases in both forms, and of the pass over the images alone, which both need."""
    torch.manual_seed(0)
    config = configuration([f"model={name}", "model.pretrained=false", "data=imagefolder"])
    network = pipeline.build(config.model)
    images = torch.randn(count, *network.preprocessing.input_size)
    blocks = pipeline.prepare(network, images[:2], config.fold)
    result: dict[str, Any] = {"images": count, "widths": len({b for group in config.bits.groups for b in group})}
    for form in ("ours", "plain"):
        own = copy.deepcopy(blocks)
        with ExitStack() as stack:
            if form == "plain":
                as_plain(stack)
            started = time.process_time()
            model = pipeline.quantize(own, config, network)
            inserted = time.process_time()
            steps.calibrate(model, images)
            result[form] = {"insert": inserted - started, "calibrate": time.process_time() - inserted}
    result["pass"] = float_pass(model, images)
    return result


def as_plain(stack: ExitStack) -> None:
    """The plain searches in the place of ours."""

    def every_step(sample: Tensor, low: float, high: float, widths: Sequence[int], p: float) -> Any:
        return [plain.activation_step(sample, low, high, bits, p) for bits in widths]

    stack.enter_context(mock.patch.object(insert, "weight_grids", plain.weight_grids))
    stack.enter_context(mock.patch.object(steps, "activation_steps", every_step))
    stack.enter_context(mock.patch.object(steps, "activation_tables", plain.activation_tables))


@torch.inference_mode()
def float_pass(model: MultiBitModel, images: Tensor) -> float:
    """Processor seconds of the float network on the images."""
    started = time.process_time()
    with passthrough(model):
        for part in images.split(32):
            model(part)
    return time.process_time() - started


def table(found: dict[str, Any]) -> str:
    """The results as a table of Markdown."""
    lines = [
        "| model | images | insert, plain | insert | calibrate, plain | calibrate | float pass | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, row in found.items():
        old, new = row["plain"], row["ours"]
        ratio = sum(old.values()) / sum(new.values())
        lines.append(
            f"| {name} | {row['images']} | {old['insert']:.1f} | {new['insert']:.1f} | {old['calibrate']:.1f} | "
            f"{new['calibrate']:.1f} | {row['pass']:.1f} | {ratio:.1f} |"
        )
    note = (
        "Processor seconds on one thread, both forms in one process. Ratio: of both phases; the float pass is part of "
        "calibrate in both forms."
    )
    return "\n".join([*lines, "", note]) + "\n"


if __name__ == "__main__":
    main()
