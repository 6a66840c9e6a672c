"""A .tflite in LiteRT's interpreter, and what it says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptmq_lightning.export.session import per_thread
from ptmq_lightning.export.targets import Run
from ptmq_lightning.export.values import Array

PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL")


class Runner:
    """One interpreter, for one thread at a time; tensors by name, of any size of batch."""

    def __init__(self, model: bytes, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_content=model, num_threads=threads)
        self.inputs = {row["name"]: row for row in self._interpreter.get_input_details()}
        self.outputs = {row["name"]: row for row in self._interpreter.get_output_details()}
        self._batch = 0

    def __call__(self, given: Mapping[str, Array]) -> dict[str, Array]:
        batch = len(next(iter(given.values())))
        if batch != self._batch:
            for name, value in given.items():
                self._interpreter.resize_tensor_input(self.inputs[name]["index"], value.shape)
            self._interpreter.allocate_tensors()
            self._batch = batch
        for name, value in given.items():
            self._interpreter.set_tensor(self.inputs[name]["index"], value)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(row["index"]) for name, row in self.outputs.items()}


def images_to_logits(model: bytes, threads: int | None) -> Run:
    """images (B, C, H, W) float32 -> logits (B, classes) float32, of a file that takes and gives floats or int8."""
    runner_of = per_thread(lambda: Runner(model, threads))

    def run(images: Array) -> Array:
        runner: Runner = runner_of()
        (name, row), (_, last) = next(iter(runner.inputs.items())), next(iter(runner.outputs.items()))
        given = np.ascontiguousarray(np.moveaxis(images, 1, -1))
        if row["dtype"] == np.int8:
            scale, zero = row["quantization"]
            given = np.clip(np.rint(given / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        (made,) = runner({name: given}).values()
        if last["dtype"] == np.int8:
            scale, zero = last["quantization"]
            made = (made.astype(np.float32) - zero) * np.float32(scale)
        return made

    return run


def float_operators(data: bytes) -> dict[str, int]:
    """Convolutions and products of a file that read floats, by operator."""
    from ai_edge_litert import schema_py_generated as schema

    graph = Graph(data)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found = Counter(
        names[graph.codes[operator.opcodeIndex]]
        for operator in graph.operators
        if graph.tensors[operator.inputs[0]].type == schema.TensorType.FLOAT32
    )
    return {name: found[name] for name in PRODUCTS if found[name]}


class Graph:
    """The tensors, operators and operator codes of a file's only subgraph."""

    def __init__(self, data: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        model: Any = schema.ModelT.InitFromPackedBuf(data, 0)
        self.codes = [code.builtinCode for code in model.operatorCodes]
        self.tensors, self.operators = model.subgraphs[0].tensors, model.subgraphs[0].operators
        self.buffers = model.buffers
