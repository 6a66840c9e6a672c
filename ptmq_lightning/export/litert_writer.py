"""Tensors and operators of a .tflite file as they are written, one after the other, on the schema of ai-edge-litert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptmq_lightning.export.values import Array

VERSION = 3  # of the TFLite schema
IDENTIFIER = b"TFL3"
PER_BYTE = {"INT4": 2, "INT2": 4}
_TYPES = {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8"}
# Of an operator whose kernel for integers has another version than the first; runtimes look it up.
_VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "MAX_POOL_2D": 2,
             "AVERAGE_POOL_2D": 2, "MEAN": 2, "PAD": 2, "PADV2": 2, "MAXIMUM": 2, "DEQUANTIZE": 2, "QUANTIZE": 2,
             "RELU": 2, "RELU6": 2, "CONCATENATION": 2, "TRANSPOSE": 2, "LOGISTIC": 2}  # fmt: skip


@dataclass(frozen=True)
class TfliteModel:
    """The bytes of a file, with the method that a graph is written by."""

    data: bytes

    def SerializeToString(self) -> bytes:  # as an onnx.ModelProto has it
        return self.data


class TfliteWriter:
    """One subgraph. Tensors are numbers."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # the first one is empty by convention
        self.operators: list[Any] = []
        self._codes: dict[str, int] = {}
        self._names: dict[str, int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], kind: str, scale: Array | float | None = None, zero: int = 0
    ) -> int:
        """A tensor without data. kind: of the schema's TensorType; scale: a number, or one per output channel of axis
        0."""
        made = self.schema.TensorT()
        made.name, made.shape = self._free(name), [int(size) for size in shape]
        made.type, made.buffer = getattr(self.schema.TensorType, kind), 0
        if scale is not None:
            made.quantization = self.schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, dtype=np.float32))
            made.quantization.scale = scales.tolist()
            made.quantization.zeroPoint = [int(zero)] * len(scales)
            made.quantization.quantizedDimension = 0
        self.tensors.append(made)
        return len(self.tensors) - 1

    def constant(self, name: str, value: Array, scale: Array | float | None = None, zero: int = 0) -> int:
        """A tensor with data, stored as it is; without a scale equal ones are stored once."""
        key = (str(value.dtype), value.shape, value.tobytes())
        if scale is None and key in self._constants:
            return self._constants[key]
        made = self.tensor(name, value.shape, _TYPES[str(value.dtype)], scale, zero)
        self._fill(made, np.frombuffer(value.tobytes(), dtype=np.uint8))
        if scale is None:
            self._constants[key] = made
        return made

    def packed(self, name: str, codes: Array, kind: str, scale: Array) -> int:
        """Signed codes of 4 or 2 bits, the first one in the lowest bits of a byte."""
        count = PER_BYTE[kind]
        bits = 8 // count
        low = (codes.reshape(-1, count).astype(np.int16) & (2**bits - 1)).astype(np.uint8)
        packed = np.zeros(len(low), dtype=np.uint8)
        for place in range(count):
            packed |= low[:, place] << np.uint8(place * bits)
        made = self.tensor(name, codes.shape, kind, scale)
        self._fill(made, packed)
        return made

    def operator(
        self, code: str, inputs: Sequence[int], output: int, options: str = "", version: int = 0, **values: Any
    ) -> int:
        """Append an operator of the schema's BuiltinOperator; options: the name of its table of options, values: their
        fields."""
        made = self.schema.OperatorT()
        made.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        made.inputs, made.outputs = list(inputs), [output]
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")()
            for key, value in values.items():
                setattr(made.builtinOptions, key, value)
        self.operators.append(made)
        return output

    def model(self, inputs: Sequence[int], outputs: Sequence[int], about: str) -> TfliteModel:
        """The file. about: its description."""
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators, graph.name = self.tensors, self.operators, "main"
        graph.inputs, graph.outputs = list(inputs), list(outputs)
        model = self.schema.ModelT()
        model.version, model.description = VERSION, about
        model.operatorCodes = [self._code(name) for name in self._codes]
        model.subgraphs, model.buffers = [graph], self.buffers
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=IDENTIFIER)
        return TfliteModel(bytes(builder.Output()))

    def _code(self, name: str) -> Any:
        made = self.schema.OperatorCodeT()
        made.builtinCode = getattr(self.schema.BuiltinOperator, name)
        made.deprecatedBuiltinCode = min(made.builtinCode, 127)
        made.version = _VERSIONS.get(name, 1)
        return made

    def _fill(self, tensor: int, data: Array) -> None:
        buffer = self.schema.BufferT()
        buffer.data = data
        self.tensors[tensor].buffer = len(self.buffers)
        self.buffers.append(buffer)

    def _free(self, name: str) -> str:
        """The name, numbered where it was given before."""
        self._names[name] = self._names.get(name, -1) + 1
        return name if not self._names[name] else f"{name}.{self._names[name]}"
