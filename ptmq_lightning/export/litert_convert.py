"""A planned network as a .tflite of 8-bit integers: images in the order (B, H, W, C), every tensor int8.

A tensor of a bits has 2^a codes at the upper end of int8, so that the type itself clips what is too large, at every
width and without an operator; what is too small is clipped by the ReLU in front, or by a MAXIMUM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ptmq_lightning.export.draft import Draft
from ptmq_lightning.export.flow import CONSTANT, IMAGE, LAYERS, Op
from ptmq_lightning.export.litert_writer import PER_BYTE, TfliteModel, TfliteWriter
from ptmq_lightning.export.onnx_convert import IMAGES, LOGITS, source_of
from ptmq_lightning.export.onnx_emit import flat, pair, shape_of
from ptmq_lightning.export.onnx_pools import pads_of
from ptmq_lightning.export.plan import QUANTIZER
from ptmq_lightning.export.values import Array, layer_integers, weight_of
from ptmq_lightning.runtime.errors import ExportError

NONE, RELU = 0, 1  # of the schema's ActivationFunctionType
SAME, VALID = 0, 1  # of its Padding
NATIVE = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}  # bits of a linear layer's weight -> bits that hold it
TOP, BOTTOM = 127, -128


@dataclass(frozen=True)
class Grid:
    """Of an int8 tensor: value = (code - zero) * scale, codes from `low` to 127."""

    scale: float
    zero: int
    low: int

    @classmethod
    def of(cls, values: Mapping[str, Array], quantizer: str) -> Grid:
        if f"{quantizer}.scale_in" in values:
            raise ExportError(
                f"the tensor of '{quantizer}' is multiplied by a number; expected none in this target. Choose another "
                f"one of `ptmq export --targets`, or run the artifact with load()."
            )
        scale, zero, low = (values[f"{quantizer}.{key}"] for key in ("scale", "zero_point", "low"))
        shift = shift_of(values, quantizer)
        return cls(float(scale), int(zero) + shift, int(low) + shift)


def shift_of(values: Mapping[str, Array], quantizer: str) -> int:
    """From the codes of the plan, whose largest is `high`, to int8 codes, whose largest is 127."""
    return TOP - int(values[f"{quantizer}.high"])


@dataclass(frozen=True)
class Codes:
    """Between a tensor of the plan, u8 (B, C, H, W), and that of the file, int8 (B, H, W, C)."""

    shift: int

    def into(self, codes: Array) -> Array:
        moved = np.moveaxis(codes, 1, -1) if codes.ndim == 4 else codes
        made: Array = np.ascontiguousarray(moved.astype(np.int16) + self.shift).astype(np.int8)
        return made

    def back(self, codes: Array) -> Array:
        made: Array = (codes.astype(np.int16) - self.shift).astype(np.uint8)
        return np.moveaxis(made, -1, 1) if codes.ndim == 4 else made


@dataclass(frozen=True)
class LayerGraph:
    """A file of single layers, and how its inputs and outputs hold the plan's codes."""

    model: TfliteModel
    codes: Mapping[str, Codes]


@dataclass(frozen=True)
class Value:
    """A tensor: its number, its grid, its shape at a batch of one (H, W, C as the file has them), and whether nothing
    in it is below zero."""

    tensor: int
    grid: Grid
    shape: tuple[int, ...]
    positive: bool = False


class LiteRtConverter:
    """One width of a draft. floats: the file takes float images and gives float logits, else int8 ones. native: linear
    layers in the bits of NATIVE, else as convolutions in 8."""

    def __init__(self, draft: Draft, name: str, *, floats: bool = True, native: bool = True) -> None:
        self.draft, self.name, self.plan = draft, name, draft.plan
        self.floats, self.native = floats, native
        self.writer = TfliteWriter()
        self.values: dict[Op, Value] = {}

    def network(self) -> TfliteModel:
        """images (1, H, W, C) -> logits (1, classes)."""
        for op in self.draft.ops:
            if op.key != CONSTANT:
                self.values[op] = self._emit(op)
        last = self.values[self.draft.ops[-1]]
        output = last.tensor
        if self.floats:
            output = self.writer.tensor(LOGITS, last.shape, "FLOAT32")
            self.writer.operator("DEQUANTIZE", [last.tensor], output, "DequantizeOptions")
        return self.writer.model([self._input], [output], f"ptmq {self.name}")

    def layers(self) -> LayerGraph | None:
        """Every quantized layer by itself: "<layer>.in0" -> "<layer>.out", int8 both."""
        inputs, outputs, codes = list[int](), list[int](), dict[str, Codes]()
        values = self.draft.values[self.name]
        for op in self.draft.ops:
            if op.key in LAYERS:
                source = op.args[0]
                quantizer = source_of(source, self.plan)
                self.values[source] = self._placed(f"{op.path}.in0", source, self.grid(quantizer))
                codes[f"{op.path}.in0"] = Codes(shift_of(values, quantizer))
                codes[f"{op.path}.out"] = Codes(shift_of(values, self.plan.at[op]))
                inputs.append(self.values[source].tensor)
                made = self._emit(op)
                self.writer.tensors[made.tensor].name = f"{op.path}.out"
                outputs.append(made.tensor)
        model = self.writer.model(inputs, outputs, f"ptmq {self.name} layers")
        return LayerGraph(model, codes) if outputs else None

    def grid(self, quantizer: str) -> Grid:
        return Grid.of(self.draft.values[self.name], quantizer)

    def _emit(self, op: Op) -> Value:
        from ptmq_lightning.export.litert_ops import OPERATIONS

        if op.key == IMAGE:
            return self._image(op)
        given = [self.values[a] for a in flat(op.args) if isinstance(a, Op) and a.key != CONSTANT]
        if op.key == QUANTIZER or op in self.plan.absorbed:
            return self._at(op, given[0])
        if op.key in LAYERS:
            return (self._linear if op.key == "QuantLinear" else self._conv)(op, given[0])
        return self._at(op, OPERATIONS[op.key](self, op, given))

    def _at(self, op: Op, value: Value) -> Value:
        """The value on the grid that the plan has at an operation."""
        if op not in self.plan.at:
            return value
        grid = self.grid(self.plan.at[op])
        return value if value.grid == grid else self.requantized(value, grid, self.plan.at[op])

    def requantized(self, value: Value, grid: Grid, name: str) -> Value:
        """The same tensor on another grid."""
        made = self.tensor(name, value.shape, grid)
        self.writer.operator("QUANTIZE", [value.tensor], made, "QuantizeOptions")
        return self.clipped(Value(made, grid, value.shape, value.positive), name)

    def clipped(self, value: Value, name: str, fused: bool = False) -> Value:
        """Codes not below `low`; fused: a ReLU in front has seen to it."""
        grid = value.grid
        if grid.low == BOTTOM or (grid.low == grid.zero and (fused or value.positive)):
            return replace(value, positive=grid.low == grid.zero)
        bound = self.writer.constant(f"{name}.low", np.array([grid.low], np.int8), grid.scale, grid.zero)
        made = self.tensor(name, value.shape, grid)
        self.writer.operator("MAXIMUM", [value.tensor, bound], made, "MaximumMinimumOptions")
        return replace(value, tensor=made, positive=grid.low == grid.zero)

    def made(
        self, op: Op, code: str, inputs: Sequence[int], shape: tuple[int, ...], options: str, **values: Any
    ) -> Value:
        """What an operator with a fused activation makes, on the grid that the plan has for it."""
        quantizer = self.plan.at[op]
        grid, name = self.grid(quantizer), op.path or op.name
        fused = grid.low == grid.zero and grid.low != BOTTOM
        made = self.tensor(name, shape, grid)
        values["fusedActivationFunction"] = RELU if fused else NONE
        self.writer.operator(code, inputs, made, options, **values)
        return self.clipped(Value(made, grid, shape), name, fused)

    def tensor(self, name: str, shape: Sequence[int], grid: Grid) -> int:
        return self.writer.tensor(name, shape, "INT8", grid.scale, grid.zero)

    def padded(
        self, value: Value, widths: Sequence[int], name: str, fill: int | None = None, channels: Sequence[int] = (0, 0)
    ) -> Value:
        """widths: (top, left, bottom, right). fill: another code than that of zero."""
        top, left, bottom, right = widths
        pads = np.array([[0, 0], [top, bottom], [left, right], channels], np.int32)
        if not pads.any():
            return value
        shape = tuple(size + int(more) for size, more in zip(value.shape, pads.sum(1), strict=True))
        inputs = [value.tensor, self.writer.constant(f"{name}.pads", pads)]
        made = self.tensor(f"{name}.padded", shape, value.grid)
        if fill is None or fill == value.grid.zero:
            self.writer.operator("PAD", inputs, made, "PadOptions")
        else:
            grid = value.grid
            inputs.append(self.writer.constant(f"{name}.fill", np.array([fill], np.int8), grid.scale, grid.zero))
            self.writer.operator("PADV2", inputs, made, "PadV2Options")
        return replace(value, tensor=made, shape=shape)

    def _placed(self, name: str, op: Op, grid: Grid) -> Value:
        shape = channels_last(shape_of(op))
        return Value(self.tensor(name, shape, grid), grid, shape)

    def _image(self, op: Op) -> Value:
        shape, grid = channels_last(shape_of(op)), self.grid(self.plan.at[op])
        if not self.floats:
            value = self._placed(IMAGES, op, grid)
            self._input = value.tensor
            return value
        self._input = self.writer.tensor(IMAGES, shape, "FLOAT32")
        made = self.tensor("image", shape, grid)
        self.writer.operator("QUANTIZE", [self._input], made, "QuantizeOptions")
        return self.clipped(Value(made, grid, shape), "image")

    def _integers(self, op: Op, held: int = 8) -> dict[str, Array]:
        """weight (O, ...) int8, scale (O,), bias int32 (O,); held: bits that hold a weight, of which those that its
        width leaves free make the unit of the bias smaller (values._use_free_bits)."""
        bits, arrays = dict(self.draft.assignments[self.name].layers)[op.path].w, self.draft.arrays
        row = self.plan.table.layers[op.path]
        assert row.source is not None
        step = self.draft.values[self.name][f"{row.source}.scale"]
        codes, scale, used = weight_of(arrays, op.path, bits)
        bias = arrays.get(f"{op.path}.bias.{bits}", np.zeros(len(codes), np.float32))
        if held < 8:
            free = held - used
            codes, scale, used = codes * np.int8(2**free), scale * np.float32(0.5**free), 8
        return layer_integers(codes, scale, bias, step, used, False)

    def _holding(self, op: Op, inner: int) -> tuple[int, dict[str, Array]]:
        """The fewest bits that hold a linear layer's weights, and its integers. A row has to fill its bytes, and the
        bias has to be counted in units of half an output step at most: with few weights of few bits it is not."""
        bits = weight_of(self.draft.arrays, op.path, dict(self.draft.assignments[self.name].layers)[op.path].w)[2]
        for held in sorted(set(NATIVE.values())):
            if held >= (NATIVE[bits] if self.native else 8) and (held == 8 or inner % PER_BYTE[f"INT{held}"] == 0):
                found = self._integers(op, held)
                if held == 8 or found["bias_scale"].max() <= self.grid(self.plan.at[op]).scale / 2:
                    return held, found
        raise AssertionError("8 bits hold every width")

    def _bias(self, op: Op, found: dict[str, Array]) -> int:
        return self.writer.constant(f"{op.path}.bias", found["bias"], found["bias_scale"])

    def _conv(self, op: Op, value: Value) -> Value:
        conv, found = op.module, self._integers(op)
        assert conv is not None
        kernel, (height, width, channels) = found["weight"].shape[2:], value.shape[1:]
        stride, dilation = pair(conv.stride), pair(conv.dilation)
        depthwise = len(found["weight"]) > 1 and found["weight"].shape[1] < channels
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        weight = np.ascontiguousarray(found["weight"].transpose(order))
        scheme, pads = padding_of(pads_of(conv.padding, kernel, dilation), (height, width), kernel, stride, dilation)
        value = self.padded(value, pads, op.path)
        filter_ = self.writer.constant(f"{op.path}.weight", weight, found["scale"])
        self.writer.tensors[filter_].quantization.quantizedDimension = 3 if depthwise else 0
        options: dict[str, Any] = {
            "padding": scheme, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1],
        }  # fmt: skip
        inputs, shape = [value.tensor, filter_, self._bias(op, found)], channels_last(shape_of(op))
        if depthwise:
            options["depthMultiplier"] = len(found["weight"]) // channels
            return self.made(op, "DEPTHWISE_CONV_2D", inputs, shape, "DepthwiseConv2DOptions", **options)
        return self.made(op, "CONV_2D", inputs, shape, "Conv2DOptions", **options)

    def _linear(self, op: Op, value: Value) -> Value:
        if len(value.shape) != 2:
            raise ExportError(
                f"the linear layer '{op.path}' reads a tensor of {len(value.shape)} axes; expected two, (batch, "
                f"channels), in this target. Choose another one of `ptmq export --targets`."
            )
        held, found = self._holding(op, value.shape[1])
        if held < 8:
            filter_ = self.writer.packed(f"{op.path}.weight", found["weight"], f"INT{held}", found["scale"])
        else:
            filter_ = self.writer.constant(f"{op.path}.weight", found["weight"], found["scale"])
        inputs, shape = [value.tensor, filter_, self._bias(op, found)], (1, len(found["weight"]))
        return self.made(op, "FULLY_CONNECTED", inputs, shape, "FullyConnectedOptions")


Emit = Callable[[LiteRtConverter, Op, Sequence[Value]], Value]


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """(B, C, H, W) -> (1, H, W, C); other shapes keep their order."""
    return (1, *shape[2:], shape[1]) if len(shape) == 4 else (1, *shape[1:])


def padding_of(
    pads: Sequence[int], size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[int, list[int]]:
    """TFLite's scheme, and what has to be padded before it; pads: (top, left, bottom, right)."""
    if not any(pads):
        return VALID, [0] * 4
    own = []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
        own.append((total // 2, total - total // 2))
    if list(pads) == [own[0][0], own[1][0], own[0][1], own[1][1]]:
        return SAME, [0] * 4
    return VALID, list(pads)
