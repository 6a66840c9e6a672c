"""8 bits by calibration alone: ONNX Runtime's quantize_static, NNCF's default and our own, on the same images.

    PTMQ_DATA=DIR python benchmarks/w8a8.py                               # all experiments
    PTMQ_DATA=DIR python benchmarks/w8a8.py --experiments cifar_resnet20 --tools onnxruntime
    python benchmarks/w8a8.py --experiments --networks resnet18 deit_s    # random weights: bytes and time alone

Each tool gets the float network and the calibration images of the experiment, and is measured on the images of
`accuracy.py`, in its own runtime: the figures stand beside the rows w8a8 of the accuracy tables. quantize_static:
its pre-processing, then QDQ with a scale per channel and its other defaults, which takes at most MOST images, as it
holds every tensor of every image; of a transformer its products alone: with all operators ViT-Tiny is at chance. NNCF:
`nncf.quantize` with its defaults (300 images, biases corrected) on the network as OpenVINO reads it; of a transformer
with the model type that it has for these. `pip install nncf` first: it is not in our environment. Ours: rounded to
nearest with calibrated step sizes (method=rtn, nothing learned, as the others learn nothing; of a transformer with
placement.gelu=table, as method=ptmq has it), exported and run by `Session`. Seconds are of the processor, for the
quantization alone. Milliseconds of a pass: medians of processor time on one thread, all tools in turns, so that the
tools of a table are to be run together. OpenVINO computes what is not in integers in bfloat16 where the processor has
it, its default, and in float32 in `Session`. Results, one experiment after another: benchmarks/results/w8a8.{json,md}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ptmq_lightning as ptmq  # isort: skip  # the torchvision cure comes first

import numpy as np
import onnxruntime
import openvino
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.accuracy_figure import TITLES
from benchmarks.random_models import random_network
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.data.module import eval_loader
from ptmq_lightning.device.bench import interleaved
from ptmq_lightning.evaluation.accuracy import Tally
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session, inference_session
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "w8a8.json"
MOST = 128  # calibration images of quantize_static
REAL = 32  # images of an export's ranges
ROUNDS = {1: 21, 32: 5}  # of each batch that is timed

RANDOM = ("resnet18", "deit_s")

Run = Callable[[Tensor], Tensor]  # (B, C, H, W) -> logits (B, classes)
Batches = Sequence[tuple[Tensor, Tensor]]  # images (B, C, H, W), labels (B,)


@dataclass(frozen=True)
class Case:
    """A float network, its calibration images (N, C, H, W), the keys of our command, and a folder for files."""

    module: nn.Module
    images: Tensor
    keys: Sequence[str]
    folder: Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="*", choices=TITLES, default=list(TITLES))
    parser.add_argument("--networks", nargs="*", choices=RANDOM, default=[], help="at 224 px, with random weights")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--val-images", type=int, help="evaluation images; null: those of the experiment")
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in (*options.experiments, *options.networks):
        with tempfile.TemporaryDirectory() as folder:
            made = random_case if name in options.networks else real_case
            rows = compared(*made(name, Path(folder), options.val_images), options.tools)
        rows = found.get(name, {}) | rows
        found[name] = {tool: rows[tool] for tool in TOOLS if tool in rows}
        write_atomically(options.results, json.dumps(found, indent=2) + "\n")
        write_atomically(options.results.with_suffix(".md"), page(found))


def real_case(experiment: str, folder: Path, val_images: int | None) -> tuple[Case, Batches]:
    """An experiment's network, and its evaluation images with their labels."""
    more = [] if val_images is None else [f"data.val_images={val_images}"]
    keys = [f"experiment={experiment}", "method=rtn", *more]
    config = configuration(keys)
    sources, indices = pipeline.find(config)
    network = pipeline.build(config.model)
    sources, images = pipeline.load(config, network, sources, indices)
    return Case(network.module, images, keys, folder), list(eval_loader(sources.val, config.data.eval_batch))


def random_case(name: str, folder: Path, _: int | None) -> tuple[Case, Batches]:
    """A network of the zoo with random weights and images of noise, which nobody evaluates."""
    module = random_network(name)
    return Case(module, torch.randn(MOST, 3, 224, 224), [f"model={name}", "method=rtn"], folder), []


def compared(case: Case, batches: Batches, tools: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A row for each tool: what it told, its accuracy beside the float network's where there is anything to evaluate,
    and milliseconds by batch."""
    with torch.inference_mode():
        fp = [case.module(images) for images, _ in batches]
    rows, runs = dict[str, dict[str, Any]](), dict[str, Run]()
    for tool in tools:
        runs[tool], told = TOOLS[tool](case)
        rows[tool] = told | (measured(fp, runs[tool], batches) if batches else {})
        print(case.keys[0], tool, rows[tool], flush=True)
    for batch, rounds in ROUNDS.items():
        x = case.images[:batch]
        passes = {tool: partial(run, x) for tool, run in runs.items()}
        for tool, milliseconds in interleaved(passes, rounds, time.process_time).items():
            rows[tool].setdefault("ms", {})[str(batch)] = milliseconds
    return rows


def in_float_onnxruntime(case: Case) -> tuple[Run, dict[str, Any]]:
    """The float network in ONNX Runtime on the CPU."""
    file = plain(case)
    return onnxruntime_run(file), {"bytes": file.stat().st_size, "version": f"float, {VERSIONS['onnx']}"}


def in_float_openvino(case: Case) -> tuple[Run, dict[str, Any]]:
    """The float network in OpenVINO on the CPU, with its defaults."""
    run, size = openvino_run(openvino_model(case), case.folder / "float_openvino")
    return run, {"bytes": size, "version": f"float, {VERSIONS['openvino']}"}


def with_onnxruntime(case: Case) -> tuple[Run, dict[str, Any]]:
    """quantize_static, run by ONNX Runtime on the CPU."""
    images = case.images[:MOST]
    file, ready, made = plain(case), case.folder / "ready.onnx", case.folder / "made.onnx"
    start = time.process_time()
    quant_pre_process(str(file), str(ready))
    ops = ["Conv", "Gemm", "MatMul"] if _transformer(case.module) else None
    quantize_static(
        str(ready), str(made), _Reader(images), per_channel=True, activation_type=QuantType.QUInt8,
        op_types_to_quantize=ops,
    )  # fmt: skip
    seconds = time.process_time() - start
    told = {"bytes": made.stat().st_size, "seconds": seconds, "images": len(images)}
    return onnxruntime_run(made), told | {"version": VERSIONS["onnx"]}


def with_nncf(case: Case) -> tuple[Run, dict[str, Any]]:
    """nncf.quantize, run by OpenVINO on the CPU, with its defaults."""
    import nncf

    model, images = openvino_model(case), case.images
    start = time.process_time()
    kind = nncf.ModelType.TRANSFORMER if _transformer(case.module) else None
    made = nncf.quantize(model, nncf.Dataset(images.unsqueeze(1).numpy()), model_type=kind)
    seconds = time.process_time() - start
    run, size = openvino_run(made, case.folder / "nncf")
    told = {"bytes": size, "seconds": seconds, "images": min(len(images), 300)}
    return run, told | {"version": f"nncf {importlib.metadata.version('nncf')}"}


def ours(case: Case, backend: str) -> tuple[Run, dict[str, Any]]:
    """Our w8a8, rounded to nearest, in the runtime of an export target."""
    start = time.process_time()
    keys = [*case.keys, "placement.gelu=table"] if _transformer(case.module) else case.keys
    model = ptmq.quantize(case.module, case.images, bits=[["w8a8"]], overrides=keys)
    seconds = time.process_time() - start
    folder = case.folder / f"ptmq_{backend}"
    write_export(model, folder, case.images[:REAL], backend=backend)
    session = Session(folder)
    images = min(len(case.images), configuration(case.keys).data.step_size_images)
    size = (folder / session.manifest["files"]["w8a8"]).stat().st_size
    told = {"bytes": size, "seconds": seconds, "images": images}
    return session, told | {"version": f"ptmq, {VERSIONS[backend]}"}


TOOLS: dict[str, Callable[[Case], tuple[Run, dict[str, Any]]]] = {
    "float onnxruntime": in_float_onnxruntime,
    "onnxruntime": with_onnxruntime,
    "ptmq onnx": partial(ours, backend="onnx"),
    "float openvino": in_float_openvino,
    "nncf": with_nncf,
    "ptmq openvino": partial(ours, backend="openvino"),
}
VERSIONS = {
    "onnx": f"onnxruntime {onnxruntime.__version__}",
    "openvino": f"openvino {importlib.metadata.version('openvino')}",
}


def plain(case: Case) -> Path:
    """The float network as an ONNX file."""
    file, axes = case.folder / "plain.onnx", {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(  # the exporter on torch.export needs a package more
        case.module, (case.images[:2],), str(file), input_names=["x"], output_names=["y"], dynamic_axes=axes,
        opset_version=17, dynamo=False,
    )  # fmt: skip
    return file


def onnxruntime_run(file: Path) -> Run:
    session = inference_session(file, torch.get_num_threads())
    return lambda x: torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


def openvino_model(case: Case) -> Any:
    model = openvino.convert_model(case.module, example_input=case.images[:2])
    model.reshape([-1, *case.images.shape[1:]])
    return model


def openvino_run(model: Any, folder: Path) -> tuple[Run, int]:
    """And the bytes of its files."""
    openvino.save_model(model, folder / "made.xml")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    size = sum(part.stat().st_size for part in folder.iterdir())
    return lambda x: torch.from_numpy(next(iter(compiled(x.numpy()).values()))), size


def _transformer(module: nn.Module) -> bool:
    return any(isinstance(part, nn.LayerNorm) for part in module.modules())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images (N, C, H, W), eight at a time."""

    def __init__(self, images: Tensor) -> None:
        self.parts = iter(images.split(8))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        part = next(self.parts, None)
        return None if part is None else {"x": part.numpy()}


def measured(fp: Sequence[Tensor], run: Run, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy of a network beside the float one, whose logits (B, classes) are given by batch."""
    tally = Tally(fp[0].shape[1], fp[0].device)
    for expected, (images, labels) in zip(fp, batches, strict=True):
        tally.add([run(images)], [expected], [labels])
    figures = {"top1": tally.top(1), "agreement": tally.agreement(), "logit_error": tally.logit_error()}
    return figures | {"evaluation_images": tally.images}


def page(found: Mapping[str, Any]) -> str:
    """benchmarks/results/w8a8.md."""
    lines = [
        "# 8 bits by other tools",
        "",
        "Made by `PTMQ_DATA=DIR python benchmarks/w8a8.py`, which says how.",
        "",
        "| experiment | tool | top-1 % | agreement % | logit error | bytes | ms, batch 1 | ms, batch 32 | CPU s | "
        "calibration images | evaluation images |",
        "|---|---" + "|--:" * 9 + "|",
    ]
    for name, tools in found.items():
        for row in tools.values():
            shown = {"top1": ".2f", "agreement": ".2f", "logit_error": ".4f", "bytes": ","}
            cells = [format(row[key], form) if key in row else "-" for key, form in shown.items()]
            cells += [f"{row['ms'][str(batch)]:.2f}" if "ms" in row else "-" for batch in ROUNDS]
            cells += [f"{row['seconds']:.0f}", str(row["images"])] if "seconds" in row else ["-", "-"]
            lines.append(f"| {name} | {row['version']} | {' | '.join(cells)} | {row.get('evaluation_images', '-')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
