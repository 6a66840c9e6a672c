"""What a reconstruction costs: seconds per block and peak memory, each case in a process of its own.

    python benchmarks/cost.py          # ResNet-18, DeiT-S at 224 px, and a ViT at three depths, on the CPU
    python benchmarks/cost.py --gpu    # the same on a GPU; ResNet-20 / CIFAR-10 at recon=paper (needs PTMQ_DATA)
    python benchmarks/cost.py --cases deit_s --iters 5

Weights are random and images are noise: neither changes the cost. Results go to benchmarks/results/cost_{cpu,gpu}.json
and .md, case by case; a case that is there already with the same settings is not run again. Cache: the features of all
images between two blocks, as predicted and logged before the fits.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ptmq_lightning.compose.learning import WHOLE
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
NOISE = ["data=imagefolder", "model.pretrained=false"]
CASES = {
    "resnet18": ["model=resnet18", *NOISE],
    "deit_s": ["model=deit_s", *NOISE],
    **{f"vit_t_depth{d}": ["model=vit_t", f"+model.kwargs.depth={d}", *NOISE] for d in (3, 6, 12)},
}
GPU_CASES = {"cifar_resnet20_paper": ["experiment=cifar_resnet20", "recon=paper"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *GPU_CASES])
    parser.add_argument("--iters", type=int, default=100, help="per block, in the cases with noise images")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--paper-iters", type=int, default=20000, help="per block, in the case at recon=paper")
    options = parser.parse_args()
    cases = CASES | (GPU_CASES if options.gpu else {})
    file = ROOT / "benchmarks" / "results" / f"cost_{'gpu' if options.gpu else 'cpu'}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        noise = make_noise(Path(folder) / "noise", options.images)
        for name in options.cases or cases:
            command = cases[name] + (["trainer=gpu"] if options.gpu else [])
            if name in GPU_CASES:
                command += [f"recon.iters={options.paper_iters}"]
            else:
                command += [f"recon.iters={options.iters}", f"data.calibration_images={options.images}"]
            if found.get(name, {}).get("command") != command:
                found[name] = {"command": command, **measure(command, noise, Path(folder) / name)}
                write_atomically(file, json.dumps(found, indent=2) + "\n")
                write_atomically(file.with_suffix(".md"), table(found))
            print(name, found[name])


def measure(command: list[str], noise: Path, run: Path) -> dict[str, Any]:
    """One run of train.py; seconds and bytes from its results.json."""
    data = [f"data.train={noise / 'train'}", f"data.val={noise / 'val'}"] if "data=imagefolder" in command else []
    subprocess.run([sys.executable, "train.py", *command, *data, f"hydra.run.dir={run}"], cwd=ROOT, check=True)
    results = json.loads((run / "results.json").read_text())
    log = (run / "train.log").read_text()
    blocks = sum("block " in line and "iter" in line for line in _last_iters(log))
    cache = re.search(r"feature cache: (\d+) MiB", log)
    seconds = results["seconds"]
    return {
        "blocks": blocks,
        "seconds": seconds,
        "seconds_per_block": seconds["reconstruct"] / max(blocks, 1),
        "peak_memory_bytes": results["peak_memory_bytes"],
        "predicted_cache_mib": int(cache[1]) if cache else None,
    }


def table(found: dict[str, Any]) -> str:
    lines = [
        "| case | settings | blocks | s per block | last pass, s | minutes in all | predicted cache, MiB | peak, MiB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, case in found.items():
        settings = " ".join(part for part in case["command"] if part.startswith(("recon", "data.calibration")))
        total = sum(case["seconds"].values()) / 60
        last = f"{case['seconds']['tune']:.1f}" if "tune" in case["seconds"] else "-"
        lines.append(
            f"| {name} | {settings} | {case['blocks']} | {case['seconds_per_block']:.1f} | {last} | {total:.1f} | "
            f"{case['predicted_cache_mib']} | {case['peak_memory_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _last_iters(log: str) -> list[str]:
    """The log's line of each block's last iteration; the last pass is no block's."""
    lines = [line for line in log.splitlines() if " block " in line and " iter " in line and WHOLE not in line]
    return [line for line in lines if (pair := line.split(" iter ")[1].split()[0].split("/"))[0] == pair[1]]


def make_noise(folder: Path, images: int) -> Path:
    """Folders train/ and val/ of class folders with noise pictures of 256 x 256."""
    generator = np.random.default_rng(0)
    for part, count in (("train", images), ("val", 8)):
        for index in range(count):
            place = folder / part / f"class{index % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(place / f"{index}.png")
    return folder


if __name__ == "__main__":
    main()
