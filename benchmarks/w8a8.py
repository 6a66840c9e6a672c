"""The 8 bits that other tools calibrate in a minute: ONNX Runtime's quantize_static and NNCF's default, on our images.

    PTMQ_DATA=DIR python benchmarks/w8a8.py                               # all experiments
    PTMQ_DATA=DIR python benchmarks/w8a8.py --experiments cifar_resnet20 --tools onnxruntime

Each tool gets the float network and the calibration images of the experiment, and is measured on the images of
`accuracy.py`, in its own runtime: the figures stand beside the rows w8a8 of the accuracy tables. quantize_static:
its pre-processing, then QDQ with a scale per channel and its other defaults, which takes at most MOST images, as it
holds every tensor of every image; of a transformer its products alone: with all operators ViT-Tiny is at chance. NNCF:
`nncf.quantize` with its defaults (300 images, biases corrected) on the network as OpenVINO reads it; of a transformer
with the model type that it has for these. `pip install nncf` first: it is not in our environment. Seconds are of the
processor, for the quantization alone. Results, one after the other: benchmarks/results/w8a8.{json,md}.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ptmq_lightning  # noqa: F401  # isort: skip  # the torchvision cure comes first

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
from ptmq_lightning.compose import pipeline
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.data.module import eval_loader
from ptmq_lightning.evaluation.accuracy import Tally
from ptmq_lightning.runtime.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "benchmarks" / "results" / "w8a8.json"
MOST = 128  # calibration images of quantize_static

Run = Callable[[Tensor], Tensor]  # (B, C, H, W) -> logits (B, classes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--val-images", type=int, help="evaluation images; null: those of the experiment")
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    for name in options.experiments:
        more = [] if options.val_images is None else [f"data.val_images={options.val_images}"]
        config = configuration([f"experiment={name}", "method=rtn", *more])
        sources, indices = pipeline.find(config)
        network = pipeline.build(config.model)
        sources, images = pipeline.load(config, network, sources, indices)
        batches = list(eval_loader(sources.val, config.data.eval_batch))
        for tool in options.tools:
            with tempfile.TemporaryDirectory() as folder:
                run, told = TOOLS[tool](network.module, images, Path(folder))
                found.setdefault(name, {})[tool] = told | measured(network.module, run, batches)
            write_atomically(options.results, json.dumps(found, indent=2) + "\n")
            write_atomically(options.results.with_suffix(".md"), page(found))


def with_onnxruntime(module: nn.Module, images: Tensor, folder: Path) -> tuple[Run, dict[str, Any]]:
    """quantize_static, run by ONNX Runtime on the CPU."""
    images = images[:MOST]
    plain, ready, made = (str(folder / f"{name}.onnx") for name in ("plain", "ready", "made"))
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(  # the exporter on torch.export needs a package more
        module, (images[:2],), plain, input_names=["x"], output_names=["y"], dynamic_axes=axes, opset_version=17,
        dynamo=False,
    )  # fmt: skip
    start = time.process_time()
    quant_pre_process(plain, ready)
    ops = ["Conv", "Gemm", "MatMul"] if _transformer(module) else None
    quantize_static(
        ready, made, _Reader(images), per_channel=True, activation_type=QuantType.QUInt8, op_types_to_quantize=ops
    )
    seconds = time.process_time() - start
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    told = {"bytes": Path(made).stat().st_size, "seconds": seconds, "images": len(images)}
    version = {"version": f"onnxruntime {onnxruntime.__version__}"}
    return lambda x: torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0]), told | version


def _transformer(module: nn.Module) -> bool:
    return any(isinstance(part, nn.LayerNorm) for part in module.modules())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images (N, C, H, W), eight at a time."""

    def __init__(self, images: Tensor) -> None:
        self.parts = iter(images.split(8))

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        part = next(self.parts, None)
        return None if part is None else {"x": part.numpy()}


def with_nncf(module: nn.Module, images: Tensor, folder: Path) -> tuple[Run, dict[str, Any]]:
    """nncf.quantize, run by OpenVINO on the CPU."""
    import nncf

    model = openvino.convert_model(module, example_input=images[:2])
    model.reshape([-1, *images.shape[1:]])
    start = time.process_time()
    kind = nncf.ModelType.TRANSFORMER if _transformer(module) else None
    made = nncf.quantize(model, nncf.Dataset(images.unsqueeze(1).numpy()), model_type=kind)
    seconds = time.process_time() - start
    file = folder / "made.xml"
    openvino.save_model(made, file)
    compiled = openvino.compile_model(made, "CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads()})
    told = {"bytes": sum(part.stat().st_size for part in folder.iterdir()), "seconds": seconds}
    version = {"images": min(len(images), 300), "version": f"nncf {importlib.metadata.version('nncf')}"}
    return lambda x: torch.from_numpy(next(iter(compiled(x.numpy()).values()))), told | version


TOOLS = {"onnxruntime": with_onnxruntime, "nncf": with_nncf}


@torch.inference_mode()
def measured(module: nn.Module, run: Run, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """Accuracy of a quantized network beside its float one."""
    tally = None
    for images, labels in batches:
        fp, logits = module(images), run(images)
        tally = tally or Tally(fp.shape[1], fp.device)
        tally.add([logits], [fp], [labels])
    assert tally is not None
    figures = {"top1": tally.top(1), "agreement": tally.agreement(), "logit_error": tally.logit_error()}
    return figures | {"evaluation_images": tally.images}


def page(found: dict[str, Any]) -> str:
    """benchmarks/results/w8a8.md."""
    lines = [
        "# 8 bits by other tools",
        "",
        "Made by `PTMQ_DATA=DIR python benchmarks/w8a8.py`, which says how.",
        "",
        "| experiment | tool | top-1 % | agreement % | logit error | bytes | CPU s | calibration images | "
        "evaluation images |",
        "|---|---" + "|--:" * 7 + "|",
    ]
    for name, tools in found.items():
        for row in tools.values():
            cells = [f"{row['top1']:.2f}", f"{row['agreement']:.2f}", f"{row['logit_error']:.4f}", f"{row['bytes']:,}"]
            cells += [f"{row['seconds']:.0f}", str(row["images"]), str(row["evaluation_images"])]
            lines.append(f"| {name} | {row['version']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
