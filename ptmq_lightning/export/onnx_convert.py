"""A planned network as one ONNX graph: layers between DequantizeLinear and QuantizeLinear, as runtimes fuse them.

Each convolution stands as DequantizeLinear -> Conv -> QuantizeLinear, each linear layer as a two-dimensional Gemm with
an int32 bias, each product of activations as MatMul on u8 and s8: ONNX Runtime makes QLinearConv, QGemm and
MatMulIntegerToFloat of them. A tensor is quantized once, where it is made; a width below 8 bits clips its codes, or
looks them up in its table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptmq_lightning.export.flow import CONSTANT, IMAGE, LAYERS, Op
from ptmq_lightning.export.onnx_emit import flat, refuse, shape_of
from ptmq_lightning.export.onnx_moves import MOVES, PADS, pad, pads_zeros
from ptmq_lightning.export.onnx_ops import BINARY, FLOATS
from ptmq_lightning.export.onnx_packed import whole
from ptmq_lightning.export.onnx_spread import attributes_of, spread, spread_pads
from ptmq_lightning.export.onnx_writer import Outputs, Writer
from ptmq_lightning.export.plan import QUANTIZER, Plan
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime.layers import QuantConv2d, QuantConvTranspose2d

IMAGES, LOGITS = "images", "logits"
INT32 = 6  # of onnx.TensorProto


@dataclass(frozen=True)
class Codes:
    """Integers on the grid of a quantizer."""

    name: str
    quantizer: str


@dataclass(frozen=True)
class Size:
    """A size that is known at run time, int64 (1,)."""

    name: str


class Converter:
    """clip: where a narrow width is clipped, "codes" (integers) or "values" (before rounding, for OpenVINO). weight:
    writes the s8 weight of a layer. outer: where the graph is a branch of another (Writer)."""

    def __init__(
        self,
        plan: Plan,
        parameters: Mapping[str, Array],
        inputs: Collection[str] = (),
        *,
        clip: str = "codes",
        weight: Callable[[Writer, str], str] = whole,
        outer: Writer | None = None,
    ) -> None:
        self.plan, self.clip, self.weight = plan, clip, weight
        self.writer = Writer(parameters, inputs, outer)
        self.values: dict[Op, Any] = {}
        self._floats: dict[str, str] = {}

    def network(self, ops: Sequence[Op], metadata: Mapping[str, str]) -> Any:
        """The whole network: images (batch, C, H, W) -> logits (batch, classes), and the parameters that are inputs."""
        return self.writer.model(self._whole(ops, LOGITS), metadata)

    def branch(self, ops: Sequence[Op], name: str) -> Any:
        """The whole network as a GraphProto that reads "images" of the graph around it and makes "logits.<name>"."""
        return self.writer.graph(self._whole(ops, f"{LOGITS}.{name}"), name=name)

    def _whole(self, ops: Sequence[Op], logits: str) -> Outputs:
        for op in ops:
            self.values[op] = self._made(op, self._emit(op))
        self.writer.output(self.float(self.values[ops[-1]]), logits)
        return [(logits, np.float32, shape_of(ops[-1]))]

    def layers(self, ops: Sequence[Op]) -> Any:
        """Every quantized layer by itself: inputs "<layer>.in<i>" -> outputs "<layer>.out", codes where they are.

        With clip "values" the inputs are floats, rounded in the graph: OpenVINO has integer kernels only behind that.
        """
        outputs: list[tuple[str, Any, tuple[int, ...]]] = []
        for op in ops:
            if op.key in LAYERS and op.path not in self.plan.floating:
                for i, source in enumerate(a for a in op.args if isinstance(a, Op)):
                    quantizer = source_of(source, self.plan)
                    coded = self.clip == "codes"
                    kind = self.writer.parameters[f"{quantizer}.zero_point"].dtype if coded else np.dtype(np.float32)
                    name = self.writer.input(f"{op.path}.in{i}", kind, shape_of(source))
                    self.values[source] = Codes(name, quantizer) if coded else self._quantized(name, quantizer)
                made = self._made(op, self._emit(op))
                name, out = made, np.dtype(np.float32)
                if isinstance(made, Codes):
                    name, out = made.name, self.writer.parameters[f"{made.quantizer}.zero_point"].dtype
                outputs.append((self.writer.node("Identity", [name], f"{op.path}.out"), out, shape_of(op)))
        return self.writer.model(outputs, {})

    def float(self, value: Any) -> str:
        """The name of a float tensor; codes are dequantized once."""
        if isinstance(value, str):
            return value
        assert isinstance(value, Codes)
        if value.name not in self._floats:
            inputs = [value.name, *self._grid(value.quantizer)]
            self._floats[value.name] = self.writer.node("DequantizeLinear", inputs, f"{value.name}.float")
        return self._floats[value.name]

    def float_value(self, op: Op) -> Any:
        """What an operation of a float network makes."""
        return self._emit(op)

    def _made(self, op: Op, value: Any) -> Any:
        """What an operation made, as codes where the plan has a quantizer at it."""
        if op not in self.plan.at or isinstance(value, Codes):
            return value
        return self._quantized(self.float(value), self.plan.at[op])

    def _grid(self, quantizer: str, made: bool = False) -> list[str]:
        """Scale and zero point; made: as the tensor is made, before a factor that it is multiplied by."""
        factor = made and f"{quantizer}.scale_in" in self.writer.parameters
        names = (f"{quantizer}.scale_in" if factor else f"{quantizer}.scale", f"{quantizer}.zero_point")
        return [self.writer.parameter(name) for name in names]

    def _quantized(self, x: str, quantizer: str) -> Codes:
        w = self.writer
        if self.clip == "values" and self._narrow(quantizer):
            scale, zero = (float(w.parameters[name]) for name in self._grid(quantizer, made=True))
            ends = [(float(w.parameters[f"{quantizer}.{end}"]) - zero) * scale for end in ("low", "high")]
            x = w.node("Clip", [x, *(w.constant(end, np.float32) for end in ends)], f"{quantizer}.clip")
        made = w.node("QuantizeLinear", [x, *self._grid(quantizer, made=True)], quantizer)
        if f"{quantizer}.table" in w.parameters:
            return Codes(self._looked_up(made, quantizer), quantizer)
        return self._clipped(made, quantizer) if self.clip == "codes" else Codes(made, quantizer)

    def _looked_up(self, codes: str, quantizer: str) -> str:
        """The codes' levels. ONNX Runtime's Gather copies byte by byte and takes eight times as long as its
        GatherElements over one row; OpenVINO's Gather is the faster one there."""
        w, name = self.writer, f"{quantizer}.table"
        if name not in w.inputs and np.array_equal(w.parameters[name], np.arange(256)):
            return codes  # each is a level: 8 bits
        table, index = w.parameter(name), w.node("Cast", [codes], f"{quantizer}.index", to=INT32)
        if self.clip == "values":
            return str(w.node("Gather", [table, index], f"{quantizer}.level"))
        table, index = (w.node("Reshape", [x, w.constant([1, -1])], f"{quantizer}.row") for x in (table, index))
        level = w.node("GatherElements", [table, index], f"{quantizer}.level", axis=1)
        return str(w.node("Reshape", [level, w.node("Shape", [codes], f"{quantizer}.shape")], f"{quantizer}.level"))

    def _clipped(self, x: str, quantizer: str) -> Codes:
        """Codes within the bounds of the width; 8 bits have none but those of the type."""
        w = self.writer
        if self._narrow(quantizer):
            x = w.node("Clip", [x, w.parameter(f"{quantizer}.low"), w.parameter(f"{quantizer}.high")],
                       f"{quantizer}.clip")  # fmt: skip
        return Codes(x, quantizer)

    def _narrow(self, quantizer: str) -> bool:
        low, high = (self.writer.parameters[f"{quantizer}.{end}"] for end in ("low", "high"))
        limits = np.iinfo(low.dtype)
        return f"{quantizer}.high" in self.writer.inputs or (int(low), int(high)) != (limits.min, limits.max)

    def _emit(self, op: Op) -> Any:
        if op.key == IMAGE:
            return self.writer.input(IMAGES, np.float32, shape_of(op))
        if op.key == CONSTANT:
            assert op.value is not None
            value = (
                op.value.detach().cpu().numpy()
            )  # whole numbers are factors here: indices are read where they are used
            return self.writer.constant(value, np.float32 if value.dtype.kind in "iuf" else value.dtype)
        if op.key in LAYERS:
            others: dict[str, Callable[[Op], Any]] = {"QuantLinear": self._linear, "QuantMatmul": self._matmul}
            return others.get(op.key, self._conv)(op)
        first = self.values[op.source] if op.source is not None else None
        if op.key == QUANTIZER or op in self.plan.absorbed:
            return first
        if op.key in MOVES and isinstance(first, Codes):
            return Codes(MOVES[op.key](self.writer, op, [first.name]), first.quantizer)
        if op.key in PADS and isinstance(first, Codes) and pads_zeros(op):
            zero = self.writer.parameter(f"{first.quantizer}.zero_point")
            return Codes(pad(self.writer, op, first.name, zero), first.quantizer)
        if op.key == "getitem" and isinstance(first, list):
            return self._member(op, first)
        return self._float_operation(op, first)

    def _member(self, op: Op, members: list[str]) -> Any:
        try:
            return members[op.args[1]]
        except (IndexError, TypeError):
            raise refuse(op, "it reads the places of a largest value") from None

    def _float_operation(self, op: Op, first: Any) -> Any:
        w = self.writer
        if op.key in BINARY:
            return self._binary(op)
        if isinstance(first, Size) or (isinstance(first, list) and op.key not in ("cat", "concat", "stack")):
            raise refuse(op)
        if op.key == "size":
            return Size(w.node("Shape", [self.float(first)], op.name, start=op.args[1], end=op.args[1] + 1))
        if op.key in ("expand", "repeat", "tile"):
            return self._repeated(op, self.float(first))
        if op.key in PADS:
            return pad(w, op, self.float(first), w.constant(0, np.float32))
        emit = MOVES.get(op.key) or FLOATS.get(op.key)
        if emit is None:
            raise refuse(op)
        return emit(w, op, self._names(op))

    def _names(self, op: Op) -> list[str]:
        """The float tensors among the arguments, in their order."""
        given = [self.values[a] for a in flat((*op.args, *op.kwargs.values())) if isinstance(a, Op)]
        return [self.float(value) for value in flat(given) if not isinstance(value, Size)]

    def _repeated(self, op: Op, x: str) -> str:
        w, rank = self.writer, len(shape_of(op))
        given = [self.values[a] if isinstance(a, Op) else a for a in flat(op.args[1:])]
        if op.key == "expand":
            given = [1 if size == -1 else size for size in given]
        elif rank > len(shape_of(op.source)):
            x = w.node("Unsqueeze", [x, w.constant(list(range(rank - len(shape_of(op.source)))))], op.name)
        parts = [size.name if isinstance(size, Size) else w.constant([size]) for size in given]
        sizes = w.node("Concat", parts, f"{op.name}.shape", axis=0)
        return str(w.node("Expand" if op.key == "expand" else "Tile", [x, sizes], op.name))

    def _binary(self, op: Op) -> Any:
        values = [self.values[a] if isinstance(a, Op) else a for a in op.args[:2]]
        sizes = any(isinstance(v, Size) for v in values)
        if set(op.kwargs) - {"alpha"} or (op.kwargs and sizes):
            raise refuse(op, "it has further arguments")
        kind: Any = np.int64 if sizes else np.float32
        names = [
            v.name if isinstance(v, Size) else self.writer.constant([v] if sizes else v, kind)
            if isinstance(v, (int, float)) else self.float(v)
            for v in values
        ]  # fmt: skip
        if op.kwargs.get("alpha", 1) != 1:
            scaled = [names[1], self.writer.constant(op.kwargs["alpha"], np.float32)]
            names[1] = self.writer.node("Mul", scaled, f"{op.name}.alpha")
        made = self.writer.node(BINARY[op.key], names, op.name)
        return Size(made) if sizes else made

    def _weight(self, op: Op, axis: int) -> str:
        w = self.writer
        codes, scale = self.weight(w, op.path), w.parameter(f"{op.path}.scale")
        zeros = w.zeros(f"{op.path}.weight.zeros", w.parameters[scale], np.int8)
        return str(w.node("DequantizeLinear", [codes, scale, zeros], f"{op.path}.weight.float", axis=axis))

    def _bias(self, op: Op) -> list[str]:
        w, name = self.writer, f"{op.path}.bias"
        if name not in w.parameters:
            return []
        if f"{op.path}.bias_scale" not in w.parameters:
            return [w.parameter(name)]
        if self.clip == "values" and not op.kwargs:  # else the simulation rounds it too
            return [w.parameter(f"{op.path}.bias_float")]
        scale = w.parameter(f"{op.path}.bias_scale")
        zeros = w.constant(np.zeros_like(w.parameters[scale], dtype=np.int32), np.int32)
        return [w.node("DequantizeLinear", [w.parameter(name), scale, zeros], f"{name}.float", axis=0)]

    def _conv(self, op: Op) -> Any:
        conv, value = op.module, self.values[op.args[0]]
        assert isinstance(conv, (QuantConv2d, QuantConvTranspose2d))
        kernel = self.writer.parameters[f"{op.path}.weight"].shape[2:]
        if isinstance(conv, QuantConvTranspose2d):
            value = self._spread(op, value, conv.stride, spread_pads(conv, kernel))
        if isinstance(value, Codes) and op in self.plan.at and self.clip == "codes":
            return self._integer_conv(op, value, attributes_of(conv, kernel))
        inputs = [self.float(value), self._weight(op, 0), *self._bias(op)]
        return self.writer.node("Conv", inputs, op.path, **attributes_of(conv, kernel))

    def _spread(self, op: Op, value: Any, stride: Sequence[int], pads: Sequence[int]) -> Any:
        if not isinstance(value, Codes):
            return spread(self.writer, op, value, self.writer.constant(0, np.float32), stride, pads)
        zero = self.writer.parameter(f"{value.quantizer}.zero_point")
        return Codes(spread(self.writer, op, value.name, zero, stride, pads), value.quantizer)

    def _integer_conv(self, op: Op, value: Codes, attributes: Mapping[str, Any]) -> Codes:
        """QLinearConv as such: ONNX Runtime does not make one of a Conv whose weights are inputs of the graph."""
        w, out = self.writer, self.plan.at[op]
        inputs = [value.name, *self._grid(value.quantizer), self.weight(w, op.path)]
        zero = w.zeros(f"{op.path}.weight.zeros", 0, np.int8)
        inputs += [w.parameter(f"{op.path}.scale"), zero, *self._grid(out, made=True)]
        if f"{op.path}.bias" in w.parameters:
            inputs.append(w.parameter(f"{op.path}.bias"))
        return self._clipped(w.node("QLinearConv", inputs, op.path, **attributes), out)

    def _linear(self, op: Op) -> str:
        """Gemm knows two axes: (batch * T, C) x (C, O); the weight is stored as it is multiplied."""
        value, shape, w = self.values[op.args[0]], shape_of(op.args[0]), self.writer
        flat = w.constant([-1, shape[-1]])
        if len(shape) > 2:
            name = value.name if isinstance(value, Codes) else value
            name = w.node("Reshape", [name, flat], f"{op.path}.rows")
            value = Codes(name, value.quantizer) if isinstance(value, Codes) else name
        made = w.node("Gemm", [self.float(value), self._weight(op, 1), *self._bias(op)], op.path)
        if len(shape) == 2:
            return str(made)
        made = self._made(op, made)
        name = made.name if isinstance(made, Codes) else made
        name = w.node("Reshape", [name, w.constant([-1, *shape_of(op)[1:]])], f"{op.path}.shaped")
        return Codes(name, made.quantizer) if isinstance(made, Codes) else name  # type: ignore[return-value]

    def _matmul(self, op: Op) -> str:
        a, b = (self.float(self.values[x]) for x in op.args[:2])
        return str(self.writer.node("MatMul", [a, b], op.path))


def operations() -> frozenset[str]:
    """The names of all operations without quantized weights that a Converter writes."""
    return frozenset((*MOVES, *PADS, *BINARY, *FLOATS, "expand", "repeat", "tile", "size"))


def source_of(op: Op, plan: Plan) -> str:
    """The quantizer on whose grid a tensor is."""
    at: Op | None = op
    while at is not None and at not in plan.at:
        at = at.source
    assert at is not None
    return plan.at[at]
