"""A planned network as a QONNX graph: the ONNX graph of floats, with `Quant` nodes in place of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_convert import Converter
from ptmq_lightning.export.values import Array, grid_shape, weight_of
from ptmq_lightning.runtime.errors import ExportError
from ptmq_lightning.runtime.model import weights_of

DOMAIN, VERSION = "qonnx.custom_op.general", 1
QUANT: dict[str, Any] = {"domain": DOMAIN, "rounding_mode": "ROUND", "narrow": 0}
SUFFIX = ".weight.values"  # of the constant behind which a weight's Quant stands


class QuantConverter(Converter):
    """The graph of one width of a draft that was planned with early=False."""

    def __init__(self, draft: Draft, name: str) -> None:
        super().__init__(draft.plan, draft.values[name], clip="values")
        self._arrays, self._widths = draft.arrays, dict(draft.assignments[name].layers)

    def _quantized(self, x: str, quantizer: str) -> Any:
        values = self.writer.parameters
        scale, zero, high = (float(values[f"{quantizer}.{key}"]) for key in ("scale", "zero_point", "high"))
        numbers = [self.writer.constant(value, np.float32) for value in (scale, zero, np.log2(high + 1))]
        return self.writer.node("Quant", [x, *numbers], quantizer, signed=0, **QUANT)

    def _weight(self, op: Op, axis: int) -> str:
        """codes * step in float32, as the model has it, and the Quant that finds the codes in it."""
        w, bits = self.writer, self._widths[op.path].w
        codes, step, bits = weight_of(self._arrays, op.path, bits)
        scale = grid_shape(step, codes)
        weight = codes.astype(np.float32) * scale
        if axis == 1:
            weight, scale = np.ascontiguousarray(weight.T), scale.T
        values = w.stored(f"{op.path}{SUFFIX}", weight)
        numbers = [w.constant(scale, np.float32), *(w.constant(value, np.float32) for value in (0, bits))]
        return str(w.node("Quant", [values, *numbers], f"{op.path}.weight", signed=1, **QUANT))

    def _bias(self, op: Op) -> list[str]:
        name = f"{op.path}.bias.{self._widths[op.path].w}"
        return [self.writer.stored(f"{op.path}.bias", self._arrays[name])] if name in self._arrays else []


def finished(model: Any, batch: int | None = None) -> Any:
    """The model with QONNX's domain, for one size of batch where it is given. A Conv tells its kernel's size, which
    ONNX leaves out and the tools behind QONNX read."""
    from onnx import helper

    held = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    behind = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Quant"}
    for node in model.graph.node:
        weight = behind.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is not None:
            node.attribute.append(helper.make_attribute("kernel_shape", list(held[weight])[2:]))
    model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    return model if batch is None else with_batch(model, batch)


def with_batch(model: Any, batch: int) -> Any:
    """A copy whose inputs and outputs have this size of batch; without the shapes in between, which it changes."""
    made = type(model).FromString(model.SerializeToString())
    del made.graph.value_info[:]
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return made


def require_same_weights(draft: Draft, name: str, network: Any) -> None:
    """Raises ExportError where a weight's Quant, run by qonnx, gives other bits than the model's weight."""
    from onnx import numpy_helper
    from qonnx.custom_op.general.intquant import int_quant

    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in network.graph.initializer}
    weights = {path.split(".", 2)[2]: weight for path, weight in weights_of(draft.model)}
    for node in network.graph.node:
        if node.op_type != "Quant" or not node.input[0].endswith(SUFFIX):
            continue
        layer = node.input[0].removesuffix(SUFFIX)
        given = [held[name] for name in node.input]
        found: Array = int_quant(*given, signed=True, narrow=False, rounding_mode="ROUND").astype(np.float32)
        wanted: Any = weights[layer].at(draft.assignments[name][layer].w).detach().cpu().numpy()
        wanted = wanted.T if draft.plan.table.layers[layer].transposed else wanted
        if not np.array_equal(found.view(np.int32), (wanted + 0.0).view(np.int32)):
            apart = int((found != wanted).sum())
            raise ExportError(
                f"{apart} weights of '{layer}' at {name} come out of their Quant node with other bits than the model "
                f"has; expected the same. A step of it is too small for float32. Run `ptmq verify`, and report it."
            )
