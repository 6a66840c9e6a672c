"""An export against the simulation: every quantized layer on the same input, then the network as a whole.

A layer's step: that of the integers it makes, or 1/255 of its output's range where it makes floats, as it always does
in OpenVINO. One step is what two roundings of one value may differ by. The whole network adds what the export rounds
and the simulation does not (the image, convolutions before a shortcut) and lets differences travel: it is reported, and
refused only where the logits have little to do with each other.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.flow import LAYERS, Op, record
from ptmq_lightning.export.onnx_convert import source_of
from ptmq_lightning.export.session import Session, compile_openvino, inference_session
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime.model import at_bits

LAYER_IMAGES, BATCH = 4, 32
FLOAT_KERNELS = {"Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvInteger"}
OPENVINO_KERNELS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}


@dataclass(frozen=True)
class WidthReport:
    """agreement: percent of images with the same top-1 class. logit_error: root mean square difference of the logits
    over their standard deviation. largest_step, worst_layer: of the layers by themselves, None where none was
    compared. differing: percent of all integers that differ there, None where no layer makes any. float_kernels:
    convolutions and matrix products that run in float, by kernel."""

    images: int
    agreement: float
    logit_error: float
    largest_step: float | None
    worst_layer: str | None
    differing: float | None
    float_kernels: dict[str, int]

    STEPS: ClassVar[float] = 1.0
    LOGITS: ClassVar[float] = 1.0

    @property
    def same(self) -> bool:
        return (self.largest_step or 0.0) <= self.STEPS and self.logit_error <= self.LOGITS


def compare(draft: Draft, session: Session) -> dict[str, WidthReport]:
    """A report for every width of the export that `session` runs."""
    reports = {}
    for name, assignment in draft.assignments.items():
        session.switch(name)
        with at_bits(draft.model, assignment), torch.no_grad():
            parts = draft.images.split(BATCH)
            expected = torch.cat([draft.model(part) for part in parts])
            found = torch.cat([session(part) for part in parts])
            steps, differing = layer_steps(draft, name, session.manifest["backend"], portable=session.portable)
        worst = max(steps, key=lambda layer: steps[layer], default=None)
        largest = None if worst is None else steps[worst]
        agreement = 100 * float((expected.argmax(1) == found.argmax(1)).float().mean())
        error = float((found - expected).square().mean().sqrt() / expected.std().clamp_min(1e-12))
        kernels = float_kernels(session)
        reports[name] = WidthReport(len(expected), agreement, error, largest, worst, differing, kernels)
    return reports


def layer_steps(
    draft: Draft, name: str, backend: str = "onnx", *, portable: bool = False
) -> tuple[dict[str, float], float | None]:
    """Largest difference of each quantized layer, in its steps, and the share of integers that differ in percent.

    Every layer is given the simulation's integers and compared with what the simulation makes of them. portable: run
    in the form of `export.portable`.
    """
    target = target_of(backend)
    graph = target.layer_graph(draft, name)
    kept = _simulated(draft, name, coded=target.early)
    steps, wrong, total = {}, 0, 0
    for output, made in target.layers(graph, kept, portable).items() if graph is not None else ():
        wanted = kept[output]
        layer = output.removesuffix(".out")
        if made.dtype.kind == "f":
            steps[layer] = float(np.abs(made - wanted).max() / (np.ptp(wanted) / 255 or 1.0))
            continue
        apart = np.abs(made.astype(np.int16) - wanted.astype(np.int16))
        steps[layer], wrong, total = float(apart.max()), wrong + int((apart > 0).sum()), total + apart.size
    return steps, 100 * wrong / total if total else None


def _simulated(draft: Draft, name: str, coded: bool) -> dict[str, Array]:
    """Inputs, as codes or floats, and outputs of all layers in the simulation, by the names of `Converter.layers`."""
    values, plan = draft.values[name], draft.plan
    layers = [op for op in draft.ops if op.key in LAYERS and op.path not in plan.floating]
    wanted: dict[str, list[tuple[str, str | None, bool]]] = {}
    for op in layers:
        for i, source in enumerate(a for a in op.args if isinstance(a, Op)):
            quantizer = source_of(source, plan) if coded else None
            wanted.setdefault(source.name, []).append((f"{op.path}.in{i}", quantizer, False))
        wanted.setdefault(op.name, []).append((f"{op.path}.out", plan.at.get(op), True))
    kept: dict[str, Array] = {}

    def keep(op: str, value: Tensor) -> None:
        for target, quantizer, made in wanted.get(op, ()):
            array = value.detach().numpy()
            kept[target] = array if quantizer is None else codes_of(array, quantizer, values, made)

    images = draft.images[:LAYER_IMAGES]
    if "image" in plan.table.quantizers:
        grid = [torch.from_numpy(values[f"image.{key}"]).float() for key in ("scale", "zero_point")]
        images = (torch.round(images / grid[0]) + grid[1]).clamp(0, 255).sub(grid[1]).mul(grid[0])
    record(draft.model, images, keep)
    return kept


def codes_of(array: Array, quantizer: str, values: Mapping[str, Array], made: bool) -> Array:
    """The integers of a float tensor; made: before the factor that it is multiplied by."""
    scale = values.get(f"{quantizer}.scale_in", values[f"{quantizer}.scale"]) if made else values[f"{quantizer}.scale"]
    zero, low, high = (values[f"{quantizer}.{key}"] for key in ("zero_point", "low", "high"))
    codes: Array = np.clip(np.rint(array / scale) + zero.astype(np.float32), low, high).astype(zero.dtype)
    return codes


def float_kernels(session: Session) -> dict[str, int]:
    """Convolutions and matrix products that the runtime executes in float at the active width, by kernel."""
    name = next(n for n, own in session.assignments.items() if own == session.active)
    products = {row["name"] for row in session.manifest["layers"] if row["kind"] == "matmul"}
    return session.target.float_kernels(session.graph(name), products, name)


def openvino_floats(path: Path | bytes, products: set[str]) -> dict[str, int]:
    """Of the graph that OpenVINO executes; products: names of matrix products, which it may run within a Subgraph."""
    found: Counter[str] = Counter()
    for node in compile_openvino(path, 1).get_runtime_model().get_ops():
        info = {key: str(value.value) for key, value in node.get_rt_info().items()}
        if info["runtimePrecision"] in ("i8", "u8"):
            continue
        if info["layerType"] in OPENVINO_KERNELS:
            found[info["layerType"]] += 1
        elif info["layerType"] == "Subgraph" and (fused := products & set(info["originalLayersNames"].split(","))):
            found["MatMul"] += len(fused)
    return dict(found)


def kernels(path: Path | bytes) -> Counter[str]:
    """Node types of the graph that ONNX Runtime executes."""
    return Counter(node.op_type for node in _executed(path).node)


def branch_kernels(path: Path | bytes) -> dict[str, Counter[str]]:
    """The same for each branch of a file with all widths, by the width's name."""
    return {graph.name: Counter(node.op_type for node in graph.node) for graph in _leaves(_executed(path))}


def _executed(path: Path | bytes) -> Any:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        inference_session(path, 1, optimized)
        return onnx.load(str(optimized)).graph


def _leaves(graph: Any) -> Iterator[Any]:
    """The graphs inside of others that choose no further."""
    inner = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute if a.HasField("g")]
    for branch in inner:
        yield from _leaves(branch)
    if not inner:
        yield graph
