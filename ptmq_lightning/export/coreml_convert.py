"""A planned network as an ML program: the ONNX graph of floats node by node, weights as palettes of int8 codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptmq_lightning.export.coreml_ops import NODES, Emitter
from ptmq_lightning.export.coreml_package import coremltools
from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.flow import Op
from ptmq_lightning.export.onnx_convert import Codes, Converter
from ptmq_lightning.export.onnx_moves import MOVES, PADS
from ptmq_lightning.export.onnx_packed import by_channel
from ptmq_lightning.export.values import Array, grid_shape, weight_of

PALETTES = {2: 2, 3: 3, 4: 4, 5: 6, 6: 6, 7: 8, 8: 8}  # bits of a weight -> bits of the index that holds it
PALETTE = "Palette"  # the node that stands for a weight in the ONNX graph


@dataclass(frozen=True)
class Palette:
    """A weight: whole numbers (O, ...) int8 of 2^bits levels in each channel, step (O,). moved: zero points give each
    channel levels of its own."""

    codes: Array
    step: Array
    bits: int
    moved: bool


class PaletteConverter(Converter):
    """The graph of one width of a draft that was planned with early=False; its weights stand in `palettes`."""

    def __init__(self, draft: Draft, name: str) -> None:
        super().__init__(draft.plan, draft.values[name], clip="values")
        self._arrays, self._widths = draft.arrays, dict(draft.assignments[name].layers)
        self.palettes: dict[str, Palette] = {}

    def _emit(self, op: Op) -> Any:
        """Integers are there for convolutions and products: the format moves and pools floats alone."""
        if op.key in (*MOVES, *PADS) and op not in self.plan.absorbed and isinstance(self.values[op.args[0]], Codes):
            return self._float_operation(op, self.values[op.args[0]])
        return super()._emit(op)

    def _weight(self, op: Op, axis: int) -> str:
        bits = self._widths[op.path].w
        codes, step, held = weight_of(self._arrays, op.path, bits)
        name = str(self.writer.node(PALETTE, [], f"{op.path}.weight"))
        self.palettes[name] = Palette(codes, step, bits, held != bits)
        return name

    def _bias(self, op: Op) -> list[str]:
        name = f"{op.path}.bias.{self._widths[op.path].w}"
        return [self.writer.stored(f"{op.path}.bias", self._arrays[name])] if name in self._arrays else []


def program(model: Any, palettes: Mapping[str, Palette], batch: int) -> Any:
    """A program of coremltools with float32 inputs and outputs, float16 between; model: an onnx.ModelProto whose
    weights are the palettes."""
    from onnx import helper, numpy_helper

    ct = coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program

    mb.name_count.clear()  # it counts over all programs of a process, and the same model is to make the same bytes
    graph = model.graph
    placed = {}
    for value in graph.input:
        shape = [batch, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])]
        placed[value.name] = mb.placeholder(shape=shape)
    with Function(placed, opset_version=ct.target.iOS18) as function:
        known: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        known |= {name: mb.cast(x=function.inputs[name], dtype="fp16", name=f"{name}.half") for name in placed}
        for node in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            if node.op_type == PALETTE:
                made = _palette(mb, palettes[node.output[0]], node.output[0])
            else:
                given = [known[name] if name else None for name in node.input]
                made = NODES[node.op_type](Emitter(mb, node.name, attributes, len(node.output)), *given)
            known |= zip(node.output, made, strict=True) if isinstance(made, list) else {node.output[0]: made}
        wanted = [value.name for value in graph.output]
        function.set_outputs([mb.cast(x=known[name], dtype="fp32", name=f"{name}.float") for name in wanted])
    for name, output in zip(wanted, function.outputs, strict=True):
        output.name = name
    made_program = Program()
    made_program.add_function("main", function)
    return made_program


def _palette(mb: Any, weight: Palette, name: str) -> Any:
    """codes * step, of codes that are looked up in a table by indices of PALETTES[bits] bits; 8 bits need none."""
    from coremltools.converters.mil.mil import types

    data, bits = weight.codes, PALETTES[weight.bits]
    if bits < 8:
        kind = types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}"))
        half = 2 ** (bits - 1)
        if weight.moved:
            way = by_channel(data, axis=0)
            levels = np.arange(2 * half) * 2 ** way.up.reshape(-1, 1).astype(np.int16) + way.low.reshape(-1, 1)
            table = np.minimum(levels, 127).astype(np.int8).reshape(-1, *[1] * (data.ndim - 1), 2 * half, 1)
            indices = way.x.astype(kind)
        else:
            table = np.arange(-half, half).astype(np.int8).reshape(*[1] * data.ndim, 2 * half, 1)
            indices = (data.astype(np.int16) + half).astype(kind)
        data = mb.constexpr_lut_to_dense(indices=indices, lut=table, name=f"{name}.codes")
    scale = grid_shape(weight.step, weight.codes).astype(np.float16)
    return mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=name)
