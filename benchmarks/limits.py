"""What holds a width back: the layers of one kind at 8 bits, everything else at the width, and the other way round.

    PTMQ_DATA=DIR python benchmarks/limits.py imagenet_vit_t RUN                 # RUN: the folder of a finished run
    PTMQ_DATA=DIR python benchmarks/limits.py imagenet_vit_t RUN --pairs w3a3 --images 256
    python benchmarks/limits.py --table                                          # the page anew

A layer's kind is its operation, and in a transformer its place in the block. The figures are of the first evaluation
images. Results, one network after the other: benchmarks/results/limits.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.allocation import judge_on
from ptmq_lightning.allocate.judge import Judge
from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import MAX_BITS, BitAssignment, BitWidth

FILE = Path(__file__).resolve().parent / "results" / "limits.json"
PAIRS = ["w2a4", "w3a3", "w4a4"]
THIRDS = ("first", "middle", "last")

Widths = Callable[[LayerInfo], BitWidth]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--pairs", nargs="+", default=PAIRS)
    parser.add_argument("--images", type=int, default=350, help="evaluation images")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if not options.table:
        if options.run is None:
            parser.error("found no run; expected an experiment and the folder of a finished run of it, or --table")
        torch.set_num_threads(1)
        model, judge = opened(options.experiment, options.run, options.images)
        here = found.setdefault(
            options.experiment, {"images": options.images, f"top-1 at {MAX_BITS} bits": judge.top1, "pairs": {}}
        )
        for pair in map(BitWidth.parse, options.pairs):
            here["pairs"][str(pair)] = {name: told(model, judge, widths) for name, widths in cases(model, pair)}
            write_atomically(FILE, json.dumps(found, indent=1) + "\n")
    write_atomically(FILE.with_suffix(".md"), page(found))


def opened(experiment: str, run: Path, images: int) -> tuple[MultiBitModel, Judge]:
    """The model of a finished run, and what compares its answers with those of its widest pair."""
    model = artifact.load(run / "model")
    config = configuration([f"experiment={experiment}"])
    sources, indices = pipeline.find(config)
    sources, _ = pipeline.load(config, pipeline.build(config.model), sources, indices)
    return model, judge_on(model, sources.val, range(min(images, len(sources.val))))


def cases(model: MultiBitModel, pair: BitWidth) -> Iterator[tuple[str, Widths]]:
    """Name of a case, and the widths of a layer in it."""
    yield "all at the width", lambda layer: pair
    yield f"weights at {MAX_BITS}", lambda layer: BitWidth(MAX_BITS, pair.a)
    yield f"activations at {MAX_BITS}", lambda layer: BitWidth(pair.w, MAX_BITS)
    free = [layer for layer in model.layers.values() if not layer.pinned]
    last = max(layer.block for layer in free)
    for group in (kind, lambda layer: f"{THIRDS[min(3 * layer.block // (last + 1), 2)]} third of the blocks"):
        for name in dict.fromkeys(map(group, free)):
            yield f"{name} at {MAX_BITS}", _where(group, name, BitWidth(MAX_BITS, MAX_BITS), pair)
            yield f"{name} alone", _where(group, name, pair, BitWidth(MAX_BITS, MAX_BITS))


def _where(group: Callable[[LayerInfo], str], name: str, there: BitWidth, elsewhere: BitWidth) -> Widths:
    return lambda layer: there if group(layer) == name else elsewhere


def kind(layer: LayerInfo) -> str:
    """Of a convolution its form, of any other layer its place in its block: `attn.qkv`."""
    if layer.kind == "conv" and layer.weight_shape is not None:
        _, inputs, *size = layer.weight_shape
        return "depthwise" if inputs == 1 else "pointwise" if set(size) == {1} else "convolution"
    return ".".join(p for p in layer.name.split(".")[-2:] if not re.fullmatch(r"layers|\d+", p)) or layer.kind


def told(model: MultiBitModel, judge: Judge, widths: Widths) -> dict[str, float | None]:
    """How the model answers."""
    layers = tuple((name, layer.width(widths(layer))) for name, layer in model.layers.items())
    answers = judge.ask(BitAssignment(layers))
    return {"top1": answers.top1, "agreement": answers.agreement, "divergence": round(answers.divergence, 4)}


def page(found: dict[str, Any]) -> str:
    """benchmarks/results/limits.md."""
    lines = [
        "# What holds a width back",
        "",
        "Made by `PTMQ_DATA=DIR python benchmarks/limits.py`, which says how.",
        "",
    ]
    for name, network in found.items():
        cases = list(dict.fromkeys(case for rows in network["pairs"].values() for case in rows))
        pairs = list(network["pairs"])
        lines += [
            f"## {name}: top-1 in percent, and the divergence from {MAX_BITS} bits, on {network['images']} images "
            f"({network[f'top-1 at {MAX_BITS} bits']:.1f} % at {MAX_BITS} bits)",
            "",
            f"| case | {' | '.join(pairs)} |",
            "| --- " + "| ---: " * len(pairs) + "|",
        ]
        for case in cases:
            rows = [network["pairs"][pair][case] for pair in pairs]
            lines.append(f"| {case} | " + " | ".join(f"{r['top1']:.1f} ({r['divergence']:.3f})" for r in rows) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
