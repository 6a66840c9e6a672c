"""What a reconstruction holds: peak memory against images, widths and depth, and with the cache in files.

    python benchmarks/memory.py                 # all
    python benchmarks/memory.py --parts files   # images, widths, depth, files, resnet50, resnet50_run

Every case has a process of its own, on one thread; weights are random and images are noise, which changes no size.
`files` gives a network whose cache is four times what it is told to be free, in turn in memory and in files. `resnet50`
is a prediction, `resnet50_run` a run of two iterations a block, with the cache in files. Results go to
benchmarks/results/memory.{json,md}, part by part.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import ptmq_lightning as ptmq
from ptmq_lightning.compose import caching, pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.models import zoo
from ptmq_lightning.reconstruction.cache import predict_bytes
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel, select

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "memory.json"
MIB = 2**20
PAIRS = ["w2a4", "w3a3", "w4a4", "w5a5", "w6a6", "w7a7", "w8a8"]
BASE = {"network": "resnet18", "size": 64, "images": 256, "widths": 4, "iters": 2}
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "images": [{**BASE, "images": count} for count in (128, 256, 512, 1024)],
    "widths": [{**BASE, "widths": count} for count in (1, 2, 4, 7)],
    "depth": [{**BASE, "network": name} for name in ("resnet10t", "resnet18", "resnet34")],
}
FILES = {"network": "narrow", "size": 48, "images": 1024, "widths": 7, "batch": 16, "iters": 30}
FULL = {"network": "resnet50", "size": 224, "images": 1024, "widths": 7, "iters": 2, "cache": "auto"}
KINDS = ("wall", "processor")  # seconds
PLACES, ROUNDS, TIMES = ("memory", "auto"), 3, 4  # auto: with a TIMESth of the cache said to be free


class Residual(nn.Module):
    """A block of a ResNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act2(x + self.conv2(self.act1(self.conv1(x))))
        return y


class Narrow(nn.Module):
    """Few channels at a high resolution: large features, and fits that take little time beside their reading."""

    def __init__(self, channels: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*[Residual(channels) for _ in range(blocks)])
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.flat(self.pool(self.blocks(self.stem(x)))))
        return y


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=[*SWEEPS, "files", "resnet50", "resnet50_run"])
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    single: dict[str, Callable[[], dict[str, Any]]] = {"resnet50": resnet50, "resnet50_run": lambda: alone(FULL)}
    for name in options.parts:
        if name in single:
            found[name] = single[name]()
            keep(found)
            continue
        cases = SWEEPS.get(name) or [{**FILES, "cache": place} for _ in range(ROUNDS) for place in PLACES]
        rows: list[dict[str, Any]] = []
        for case in cases:
            rows.append(alone(case))
            print(name, rows[-1], flush=True)
        found[name] = rows
        keep(found)


def keep(found: dict[str, Any]) -> None:
    write_atomically(FILE, json.dumps(found, indent=2) + "\n")
    write_atomically(FILE.with_suffix(".md"), table(found))


def alone(case: dict[str, Any]) -> dict[str, Any]:
    """The case measured in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return {**case, **json.loads(done.stdout.splitlines()[-1])}


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """MiB: the cache as predicted, what the process held before the fits and at most during them; seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Narrow() if case["network"] == "narrow" else zoo.build(case["network"], pretrained=False).module
    images = torch.randn(case["images"], 3, case["size"], case["size"])
    groups = [[pair] for pair in PAIRS[: case["widths"]]]
    if len(groups) > 3:
        groups = [PAIRS[:1], PAIRS[1:3], PAIRS[3 : case["widths"]]]
    common = ["data.step_size_images=32", "recon.log_every=1000", f"recon.batch={case.get('batch', 32)}"]
    model = ptmq.quantize(network.eval(), images, bits=groups, overrides=common)
    given = [*common, "trainer.compile=never", f"trainer.cache={case.get('cache', 'memory')}"]
    cache = predict_bytes(model, images, recipe(model, groups))
    before, started, processor = of_process("VmRSS"), time.perf_counter(), time.process_time()
    free = cache // TIMES
    with mock.patch.object(caching, "free_memory", lambda device: free):
        ptmq.reconstruct(model, images, iters=case["iters"], overrides=given)
    seconds = {"wall": time.perf_counter() - started, "processor": time.process_time() - processor}
    sizes = {"cache": cache, "free": free, "before": before, "peak": of_process("VmHWM")}
    return {"mib": {name: size / MIB for name, size in sizes.items()}, "seconds": seconds}


def recipe(model: MultiBitModel, groups: Sequence[Sequence[str]]) -> Recipe:
    """Of the default method with these pairs."""
    listed = ",".join(f"[{','.join(group)}]" for group in groups)
    return parts.recipes(configuration([f"bits.groups=[{listed}]", "bits.extra=[]"]), model)[0]


def of_process(name: str) -> int:
    """Bytes, as Linux tells them of this process; its peak (VmHWM) is since the fits began (`compose.process`)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[name].split()[0]) * 1024


@torch.no_grad()
def resnet50() -> dict[str, float]:
    """GiB of the cache of ResNet-50, 1,024 images at 224 px and the seven widths of the default."""
    config = configuration(["model=resnet50", "model.pretrained=false", "data=imagefolder"])
    network = pipeline.build(config.model)
    blocks = pipeline.prepare(network, torch.randn(2, 3, 224, 224), config.fold)
    model = pipeline.quantize(blocks, config, network)
    images = torch.randn(1, 3, 224, 224).expand(1024, -1, -1, -1)
    streams, x, apart = len(parts.groups(config.bits).pairs), images[:1], 0
    for index, block in enumerate(model.blocks):
        select(block, None)
        before, x = x.numel() * (1 + streams if index else 1), block(x)
        apart = max(apart, before + x.numel() * (1 + streams))
    now = predict_bytes(model, images, parts.recipes(config, model)[0])
    return {"streams_apart": apart * len(images) * 4 / 2**30, "now": now / 2**30}


def table(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines: list[str] = []
    for name in (name for name in SWEEPS if name in found):
        lines += [f"Peak memory against {name}, MiB; the cache in memory:", ""]
        lines += ["| network | images | widths | cache | before the fits | peak | peak less before |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
        lines += [_row(case) for case in found[name]]
        if name in ("images", "widths"):
            lines += ["", f"Exponent of {name}: {exponent(found[name], name):.2f} (peak less before)."]
        lines += [""]
    if "files" in found:
        lines += files(found["files"])
    if "resnet50" in found:
        sizes = found["resnet50"]
        lines += [
            f"ResNet-50, 1,024 images at 224 px, seven widths, as predicted: {sizes['now']:.1f} GiB in memory or in "
            f"files, {sizes['streams_apart']:.1f} GiB where no stream is written over another. "
            "In files none of it is held by the process: the fit reads the images of an iteration.",
            "",
        ]
    if "resnet50_run" in found:
        mib = found["resnet50_run"]["mib"]
        lines += [
            f"A run of it with the cache in files, two iterations a block: {mib['peak'] / 1024:.1f} GiB at most, "
            f"{mib['before'] / 1024:.1f} of them before the fits.",
            "",
        ]
    return "\n".join(lines)


def _row(case: dict[str, Any]) -> str:
    mib = case["mib"]
    return (
        f"| {case['network']} | {case['images']} | {case['widths']} | {mib['cache']:.0f} | {mib['before']:.0f} | "
        f"{mib['peak']:.0f} | {mib['peak'] - mib['before']:.0f} |"
    )


def exponent(cases: Sequence[dict[str, Any]], name: str) -> float:
    """Of the peak's growth over what was held before, from the smallest case to the largest."""
    first, last = cases[0], cases[-1]
    grown = [case["mib"]["peak"] - case["mib"]["before"] for case in (first, last)]
    return math.log(grown[1] / grown[0]) / math.log(last[name] / first[name])


def files(cases: Sequence[dict[str, Any]]) -> list[str]:
    """The part of the table that holds files against memory."""
    by = {place: [case for case in cases if case["cache"] == place] for place in PLACES}
    size = by["auto"][0]["mib"]
    lines = [
        f"A cache of {size['cache']:.0f} MiB where {size['free']:.0f} MiB are said to be free, {ROUNDS} rounds:",
        "",
        "| cache | peak less before, MiB | seconds, wall | seconds, processor |",
        "| --- | ---: | ---: | ---: |",
    ]
    for place, own in by.items():
        grown = max(case["mib"]["peak"] - case["mib"]["before"] for case in own)
        wall, processor = (statistics.median(case["seconds"][kind] for case in own) for kind in KINDS)
        told = "files" if place == "auto" else place
        lines.append(f"| {told} | {grown:.0f} | {wall:.1f} | {processor:.1f} |")
    pairs = list(zip(by["memory"], by["auto"], strict=True))
    ratios = {kind: sorted(b["seconds"][kind] / a["seconds"][kind] for a, b in pairs) for kind in KINDS}
    shown = [f"{kind} {statistics.median(r):.2f} ({r[0]:.2f} to {r[-1]:.2f})" for kind, r in ratios.items()]
    return [*lines, "", f"Files over memory, the median of the rounds and their range: {', '.join(shown)}.", ""]


if __name__ == "__main__":
    main()
