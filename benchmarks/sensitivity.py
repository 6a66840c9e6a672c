"""The quick measure of a layer's sensitivity against the full one: rank correlation, the allocation, processor time.

    python benchmarks/sensitivity.py                     # ResNet-20 and a ViT on CIFAR-10, of the folder PTMQ_DATA
    python benchmarks/sensitivity.py --models deit_s     # random weights: their time alone means something

Results go to benchmarks/results/sensitivity.{json,md}, model by model.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ptmq_lightning.allocate.greedy import greedy
from ptmq_lightning.allocate.measures import MEASURES
from ptmq_lightning.allocate.problem import Problem
from ptmq_lightning.allocate.rules import weight_bits
from ptmq_lightning.allocate.sensitivity import Sensitivity, measure_layers
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config.schema import Config
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.memory import keep_freed_memory
from ptmq_lightning.runtime.model import MultiBitModel

FILE = Path(__file__).resolve().parent / "results" / "sensitivity.json"
CIFAR = {"cifar_resnet20": ["experiment=cifar_resnet20"], "cifar_vit": ["experiment=cifar_vit"]}
IMAGES, AVERAGES = 32, (3.0, 4.0, 5.0, 6.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CIFAR), help="also any model of the command: deit_s")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every run does
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in options.models:
        cifar = [f"data.root={os.environ['PTMQ_DATA']}/cifar10", *CIFAR[name]] if name in CIFAR else []
        found[name] = compare(*(of_run(cifar) if cifar else of_noise(name)))
        print(name, found[name])
        write_atomically(FILE, json.dumps(found, indent=2) + "\n")
        write_atomically(FILE.with_suffix(".md"), table(found))


def rounded(config: Config) -> tuple[MultiBitModel, Tensor]:
    """The network of a run, rounded to nearest and not calibrated, and its calibration images."""
    network = pipeline.build(config.model)
    _, images = pipeline.load(config, network, *pipeline.find(config))
    return pipeline.quantize(pipeline.prepare(network, images, config.fold), config, network), images


def of_run(overrides: list[str]) -> tuple[MultiBitModel, Tensor]:
    """The same at uniform widths, calibrated."""
    config = configuration([*overrides, "bits=uniform"])
    model, images = rounded(config)
    calibrate(model, images[: config.data.step_size_images])
    return model, images


def of_noise(name: str, images: int = IMAGES) -> tuple[MultiBitModel, Tensor]:
    """A network of random weights and images of noise."""
    torch.manual_seed(0)
    config = configuration([f"model={name}", "model.pretrained=false", "data=imagefolder", "bits=uniform"])
    network = pipeline.build(config.model)
    x = torch.randn(images, *network.preprocessing.input_size)
    model = pipeline.quantize(pipeline.prepare(network, x[:2], config.fold), config, network)
    calibrate(model, x[:8])
    return model, x


def compare(model: MultiBitModel, images: Tensor) -> dict[str, Any]:
    """Both measures of the same model, one after the other."""
    pairs = model.pairs
    quick, quick_seconds = timed(lambda: measure_layers(MEASURES["fisher"], model, images[:IMAGES], pairs))
    full, full_seconds = timed(lambda: measure_layers(MEASURES["divergence"], model, images[:IMAGES], pairs))
    return {
        "layers": len(full),
        "pairs": len(pairs),
        "rank_correlation": round(rank_correlation(quick, full), 3),
        "harm_of_allocation": {str(a): round(harm_ratio(model, quick, full, a), 3) for a in AVERAGES},
        "seconds": {"fisher": round(quick_seconds, 1), "divergence": round(full_seconds, 1)},
    }


def timed(measure: Callable[[], Sensitivity]) -> tuple[Sensitivity, float]:
    """Its result and its processor seconds."""
    started = time.process_time()
    return measure(), time.process_time() - started


def rank_correlation(one: Sensitivity, other: Sensitivity) -> float:
    """Spearman's, over all layers and pairs but the widest."""
    places = [(name, pair) for name, harm in one.items() for pair in harm if pair != max(harm)]
    return float(spearmanr([one[n][p] for n, p in places], [other[n][p] for n, p in places]).statistic)


def harm_ratio(model: MultiBitModel, quick: Sensitivity, full: Sensitivity, average: float) -> float:
    """Sum of the full measure's harm over the layers of the quick one's allocation, over that of its own."""

    def harm(chosen: Sensitivity) -> float:
        assignment = greedy(Problem(chosen, (weight_bits(model, model.pairs, average),)))
        return sum(full[name][assignment[name]] for name in full)

    return harm(quick) / max(harm(full), 1e-12)


def table(found: dict[str, Any]) -> str:
    """The results as a table of Markdown."""
    head = " | ".join(f"harm at {a:g} bits" for a in AVERAGES)
    lines = [
        f"| model | layers | pairs | rank correlation | {head} | fisher, s | divergence, s |",
        "| --- " + "| ---: " * (5 + len(AVERAGES)) + "|",
    ]
    for name, row in found.items():
        harm = " | ".join(f"{value:.2f}" for value in row["harm_of_allocation"].values())
        seconds = row["seconds"]
        lines.append(
            f"| {name} | {row['layers']} | {row['pairs']} | {row['rank_correlation']:.3f} | {harm} | "
            f"{seconds['fisher']:.1f} | {seconds['divergence']:.1f} |"
        )
    note = (
        f"\n{IMAGES} images, processor seconds on one thread. Harm: the sum over layers of the full measure at the "
        "bits that the quick one leads to, over that of its own allocation. Weights of cifar_* are trained, others "
        "random.\n"
    )
    return "\n".join(lines) + "\n" + note


if __name__ == "__main__":
    main()
