"""What an export of a network would refuse, asked of its float blocks before anything is fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor, fx

from ptmq_lightning.export.flow import Chain, Op, operations
from ptmq_lightning.export.onnx_convert import LOGITS, Converter
from ptmq_lightning.export.onnx_emit import flat, shape_of
from ptmq_lightning.export.plan import Plan
from ptmq_lightning.export.support import require_supported
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.runtime.errors import ExportError

LAYERS = ("Conv2d", "ConvTranspose2d", "Linear", "matmul")  # become quantized layers, which every export has


def require_exportable(blocks: Iterable[fx.GraphModule], images: Tensor, backend: str = "onnx") -> None:
    """Raises ExportError that names every operation of these float blocks that a backend does not take.

    images: (N >= 2, C, H, W).
    """
    blocks = list(blocks)
    if len(images) >= 2:
        require_supported(operations(Chain(blocks), images), target_of(backend))
    if refused := unexportable(blocks, images):
        raise ExportError(
            f"the network cannot be exported: {'; '.join(refused)}. Expected operations of the tables in "
            f"ptmq_lightning/export/onnx_ops.py. Add them there, or run the artifact with load()."
        )


def unexportable(blocks: Iterable[fx.GraphModule], images: Tensor) -> list[str]:
    """A line for each operation that ONNX has no form of, with the path of its module; none where the onnx package is
    missing or fewer than two images are given."""
    if not find_spec("onnx") or len(images) < 2:
        return []
    ops = operations(Chain(list(blocks)), images)
    converter, refused, unknown = Converter(Plan(), {}), dict[str, None](), set[Op]()
    for op in ops:
        if op.key in LAYERS:
            converter.values[op] = op.name
            continue
        if any(isinstance(a, Op) and a in unknown for a in flat((*op.args, *op.kwargs.values()))):
            converter.values[op] = op.name
            unknown.add(op)
            continue
        try:
            converter.values[op] = converter.float_value(op)
        except ExportError as error:
            unknown.add(op)
            refused[str(error).partition("; expected one of")[0].removeprefix("the operation ")] = None
    return list(refused)


def float_graph(blocks: Sequence[fx.GraphModule], images: Tensor) -> Any:
    """The float network itself as an ONNX ModelProto: images -> logits, nothing quantized."""
    ops = operations(Chain(list(blocks)), images)
    converter = Converter(Plan(), {})
    for op in ops:
        converter.values[op] = converter.float_value(op)
    converter.writer.output(converter.float(converter.values[ops[-1]]), LOGITS)
    return converter.writer.model([(LOGITS, "float32", shape_of(ops[-1]))], {})
