"""Exports for LiteRT, QONNX, Arm Ethos-U and Core ML: how far each layer is from the simulation, what a width costs.

    PTMQ_DATA=DIR python benchmarks/targets.py
    PTMQ_DATA=DIR python benchmarks/targets.py --cases cifar_resnet20 --parts ethosu

The networks are rounded to nearest and calibrated here, which neither the comparison nor the sizes mind much: both
sides run the same integers. Two mixed assignments stand beside the uniform widths: "halves" (the first half of the
layers at 8 bits, the rest at 4) and "large_narrow" (the half of the layers that has the most weights at 3 bits, the
rest at 6).
Results: benchmarks/results/targets.json, .md, and Vela's prices per layer and pair, targets_ethosu_CASE.csv.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.data.module import calibration_images, draw_calibration
from ptmq_lightning.data.sources import open_data
from ptmq_lightning.export.ethosu import NETWORKS, PRICES
from ptmq_lightning.export.ethosu_vela import read_rows
from ptmq_lightning.export.export import write_export
from ptmq_lightning.quant.steps import calibrate
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CASES = {"cifar_resnet20": 32, "imagenet_mobileone": 16}  # experiment -> images
WIDTHS = tuple(f"w{bits}a{bits}" for bits in range(2, 9))
BITS = ("bits.groups=[[w2a2,w3a3,w4a4],[w5a5,w6a6],[w7a7,w8a8]]", "bits.extra=[]")
QONNX_WIDTHS = ("w2a2", "w3a3", "w5a5", "w8a8")
SLOW_IMAGES = 8  # of what is computed operation by operation
DEVICE = "ethos-u55-256"
PACKAGES = ("ai-edge-litert", "ethos-u-vela", "qonnx", "coremltools")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"litert": litert, "qonnx": qonnx, "ethosu": ethosu, "coreml": coreml}
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    options = parser.parse_args()
    file = RESULTS / "targets.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in options.cases:
        model, images = prepared(name)
        for part in options.parts:
            found.setdefault(part, {})[name] = parts[part](name, model, images)
            found["versions"] = {package: version(package) for package in PACKAGES}
            write_atomically(file, json.dumps(found, indent=1) + "\n")
            write_atomically(file.with_suffix(".md"), report(found))
    print(report(found))


def prepared(name: str) -> tuple[MultiBitModel, Tensor]:
    """A network at every width from 2 to 8, and calibration images."""
    config = configuration([f"experiment={name}", *BITS])
    network, data = pipeline.build(config.model), config.data
    sources = open_data(data.name, preprocessing=network.preprocessing, seed=data.seed, calibration_images=64,
                        root=data.root, train=data.train, val=data.val, class_map=data.class_map,
                        val_images=100)  # fmt: skip
    images = calibration_images(sources.train, draw_calibration(sources.train, 64, 0, sources.val))
    blocks = pipeline.prepare(network, images, config.fold)
    model = pipeline.quantize(blocks, config, network)
    calibrate(model, images, p=config.step_size.p, seed=config.seed)
    model.assignments.update({key: model.resolve(bits) for key, bits in mixed(model).items()})
    return model.eval(), images[: CASES[name]]


def mixed(model: MultiBitModel) -> dict[str, dict[str, str]]:
    """Two assignments of the layers that follow the switch."""
    free = [name for name, layer in model.layers.items() if not layer.pinned]
    by_size = sorted(free, key=lambda name: model.layers[name].weights)
    large = set(by_size[len(free) // 2 :])
    return {
        "halves": {name: "w8a8" if i < len(free) // 2 else "w4a4" for i, name in enumerate(free)},
        "large_narrow": {name: "w3a3" if name in large else "w6a6" for name in free},
    }


def litert(name: str, model: MultiBitModel, images: Tensor) -> list[dict[str, Any]]:
    return compared(model, images, "litert", [*WIDTHS, *mixed(model)], "tflite")


def qonnx(name: str, model: MultiBitModel, images: Tensor) -> list[dict[str, Any]]:
    return compared(model, images[:SLOW_IMAGES], "qonnx", list(QONNX_WIDTHS), "onnx")


def coreml(name: str, model: MultiBitModel, images: Tensor) -> list[dict[str, Any]]:
    return compared(model, images[:SLOW_IMAGES], "coreml", list(WIDTHS), "mlpackage")


def compared(
    model: MultiBitModel, images: Tensor, backend: str, widths: list[str], suffix: str
) -> list[dict[str, Any]]:
    """A row per width: bytes of the file, layers by themselves, and the network as a whole."""
    rows = []
    weights = sum(layer.weights for layer in model.layers.values())
    with tempfile.TemporaryDirectory() as place:
        reports = write_export(model, Path(place) / "out", images, widths, backend=backend)
        for width, found in reports.items():
            size = size_of(Path(place) / "out" / f"{width}.{suffix}")
            rows.append({
                "width": width, "images": found.images, "bytes": size, "bits_per_weight": 8 * size / weights,
                "steps": found.largest_step, "layer": found.worst_layer, "differing": found.differing,
                "agreement": found.agreement, "logit_error": found.logit_error,
            })  # fmt: skip
            print(backend, rows[-1], flush=True)
    return rows


def size_of(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def ethosu(name: str, model: MultiBitModel, images: Tensor) -> list[dict[str, Any]]:
    """A row per width of what Vela estimates; the prices per layer and pair go to a file of their own."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        reports = write_export(model, out, images, [*WIDTHS, *mixed(model)], backend="ethosu", device=DEVICE)
        shutil.copyfile(out / PRICES, RESULTS / f"targets_ethosu_{name}.csv")
        rows: list[dict[str, Any]] = [dict(row) for row in read_rows(out / NETWORKS)]
    for row in rows:
        row["steps"] = reports[row["width"]].largest_step
        print("ethosu", row, flush=True)
    return rows


def report(found: dict[str, Any]) -> str:
    """The results in Markdown."""
    used = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [f"Networks rounded to nearest, one thread; {used}.", ""]
    for part, title in TITLES.items():
        if part in found:
            lines += [title, "", *(ETHOSU if part == "ethosu" else COMPARED)]
            lines += [row_text(name, row) for name, rows in found[part].items() for row in rows]
            lines.append("")
    return "\n".join(lines)


def row_text(name: str, row: dict[str, Any]) -> str:
    if "cycles" in row:
        numbers = [f"{int(row[key]):,}" for key in ("file_bytes", "weight_bytes", "sram_bytes", "cycles")]
        return "| " + " | ".join([name, row["width"], *numbers, row["cpu_operators"], f"{row['steps']:.0f}"]) + " |"
    differing = "-" if row["differing"] is None else f"{row['differing']:.4f}"
    steps = "-" if row["steps"] is None else f"{row['steps']:.4f}".rstrip("0").rstrip(".")
    cells = [name, row["width"], f"{row['bytes']:,}", f"{row['bits_per_weight']:.2f}", steps, differing]
    cells += [f"{row['agreement']:.1f} of {row['images']}", f"{row['logit_error']:.4f}"]
    return f"| {' | '.join(cells)} |"


TITLES = {
    "litert": "LiteRT, run by its interpreter: int8 tensors throughout, so that shortcuts and logits are rounded too",
    "qonnx": "QONNX, run by its executor: the simulation's own quantizers; a file holds a float per weight",
    "ethosu": f"Arm Ethos-U ({DEVICE}): estimates of the Vela compiler, nothing was run on a device",
    "coreml": "Core ML: read back and computed in torch; nothing was run on Apple hardware",
}
COMPARED = [
    "| network | width | bytes | bits per weight | a layer alone: steps | integers that differ, % | same class, % | "
    "logit error |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
]
ETHOSU = [
    "| network | width | file, bytes | weights, bytes | SRAM, bytes | cycles | operators on the CPU | a layer alone: "
    "steps |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
]

if __name__ == "__main__":
    main()
