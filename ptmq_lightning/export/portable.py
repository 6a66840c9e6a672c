"""Graphs that compute the same on processors without VNNI.

There the kernels of ONNX Runtime and OpenVINO multiply u8 by s8 two products at a time and add them in 16 bits, which
saturates: 255 * 127 + 255 * 127 > 32767. Two forms do not: u8 weights and factors with a zero point of 128 (ONNX
Runtime has a kernel for u8 x u8 that adds in 32 bits), and s8 weights within [-64, 64] (255 * 64 * 2 = 32640). For
OpenVINO, which runs u8 weights in float, a wider weight becomes the sum of two such ones, and a product of two
activations, of which nothing is small, is computed in float.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ptmq_lightning.export.onnx_convert import IMAGES
from ptmq_lightning.export.targets import target_of
from ptmq_lightning.export.values import Array
from ptmq_lightning.runtime.extras import require

SMALL = 64  # largest s8 weight of which two products with 255 fit 16 bits
SHIFT = 128  # from s8 to u8
LOWEST = np.array(np.finfo(np.float32).min)  # Max with it changes nothing, but OpenVINO's integers end there
# (255, 255) x (127, 127) as MatMulInteger, for machines where ONNX Runtime is and the onnx package is not.
_PROBE = (
    b"\x08\n:V\n\x18\n\x01a\n\x01b\x12\x01c\"\rMatMulInteger\x12\x01g*\r\x08\x02\x08\x01\x10\x03B\x01bJ\x02\x7f\x7f"
    b"Z\x13\n\x01a\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x02b\x13\n\x01c\x12\x0e\n\x0c\x08\x06\x12"
    b"\x08\n\x02\x08\x01\n\x02\x08\x01B\x04\n\x00\x10\x15"
)  # fmt: skip


@functools.cache
def saturates(backend: str) -> bool:
    """Whether the runtime of this backend saturates 16-bit sums on this processor; tried out, once."""
    return target_of(backend).saturates()


def onnx_is_exact() -> bool:
    import onnxruntime as ort

    (product,) = ort.InferenceSession(_PROBE, providers=["CPUExecutionProvider"]).run(
        None, {"a": np.full((1, 2), 255, np.uint8)}
    )
    return int(product.item()) == 2 * 255 * 127


def openvino_is_exact() -> bool:
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([1, 64], np.float32)
    codes = ops.fake_quantize(images, *(np.float32(end) for end in (0, 255, 0, 255)), 256)
    weight = ops.convert(ops.constant(np.full((16, 64), 127, np.int8)), np.float32)
    product = ops.matmul(codes, ops.multiply(weight, ops.constant(np.ones((16, 1), np.float32))), False, True)
    model = openvino.Model([product], [images], "probe")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    made = compiled([np.full((1, 64), 255, np.float32)])[0]
    return bool((made == 64 * 255 * 127).all())


def as_portable(model: Any, backend: str) -> Any:
    """A graph of `onnx_convert` (a ModelProto, or its bytes) as one that no processor saturates; the same numbers.

    onnx: every s8 initializer, input and output becomes u8, shifted by 128. openvino: a layer with weights outside
    [-64, 64] becomes the sum of two, and a product of two activations is taken out of the integers. The model that was
    given stays as it is.
    """
    require(backend, "onnx")
    import onnx

    made = (
        onnx.load_from_string(model)
        if isinstance(model, bytes)
        else onnx.ModelProto.FromString(model.SerializeToString())
    )
    target_of(backend).make_portable(made.graph)
    return made


def shifted(name: str, value: Array) -> Array:
    """A parameter of a graph as `as_portable` has it for ONNX Runtime: s8 becomes u8, other types stay."""
    if value.dtype != np.int8:
        return value
    moved = np.asarray(value.astype(np.int16) + SHIFT, dtype=np.uint8)
    return np.roll(moved, SHIFT) if name.endswith(".table") else moved  # a table is read by the code itself


def shifted_back(value: Array, like: np.dtype[Any]) -> Array:
    """An output of such a graph as the signed one has it."""
    return (value.astype(np.int16) - SHIFT).astype(np.int8) if value.dtype == np.uint8 and like == np.int8 else value


def unsigned(graph: Any) -> None:
    """For ONNX Runtime; graphs inside of nodes too."""
    from onnx import TensorProto, helper, numpy_helper

    made: list[Any] = []
    shifted_too = {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.INT8}
    for node in graph.node:
        made.append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                unsigned(attribute.g)
        codes = {"QuantizeLinear": node.input[2:], "Clip": node.input[:1]}.get(node.op_type, [])
        if shifted_too.intersection(codes):
            shifted_too.add(node.output[0])
        to_int8 = node.op_type == "Cast" and node.attribute[0].i == TensorProto.INT8  # the end of a weight's unpacking
        if to_int8 and node.input[0] in shifted_too:  # of codes that are u8 already
            node.attribute[0].i = TensorProto.UINT8
        elif to_int8:
            name, signed, byte = node.output[0], f"{node.output[0]}.s8", f"{node.output[0]}.u8"
            node.output[0] = signed
            made.append(helper.make_node("Cast", [signed], [byte], to=TensorProto.UINT8))
            made.append(helper.make_node("BitwiseXor", [byte, f"{name}.shift"], [name]))
            graph.initializer.append(numpy_helper.from_array(np.array(SHIFT, np.uint8), f"{name}.shift"))
    _replace_nodes(graph, made)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.INT8:
            tensor.CopyFrom(numpy_helper.from_array(shifted(tensor.name, numpy_helper.to_array(tensor)), tensor.name))
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.INT8:
            value.type.tensor_type.elem_type = TensorProto.UINT8


def _replace_nodes(graph: Any, nodes: list[Any]) -> None:
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def split_weights(graph: Any) -> None:
    """For OpenVINO; products of two activations, which cannot be split, leave the integers."""
    from onnx import helper, numpy_helper

    held: dict[str, Any] = {tensor.name: tensor for tensor in graph.initializer}
    floating = {name for node in graph.node if IMAGES in node.input for name in node.input}  # not on integers
    rest: dict[str, str] = {}  # dequantized weight -> what is left of it beside the part within [-64, 64]
    fixed = held.keys() | {node.output[0] for node in graph.node if node.input and node.input[0] in held}
    made: list[Any] = []
    for node in graph.node:
        if node.op_type == "MatMul" and fixed.isdisjoint(node.input):
            product = node.output[0]
            graph.initializer.append(numpy_helper.from_array(LOWEST, f"{product}.lowest"))
            made.append(helper.make_node("Max", [node.input[0], f"{product}.lowest"], [f"{product}.float"]))
            node.input[0] = made[-1].output[0]
        made.append(node)
        tensor: Any = held.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        codes = np.zeros(1) if tensor is None else numpy_helper.to_array(tensor)
        if codes.dtype == np.int8 and node.output[0] not in floating and np.abs(codes.astype(np.int16)).max() > SMALL:
            near = np.clip(codes, -SMALL, SMALL)
            left = numpy_helper.from_array(codes - near, f"{node.input[0]}.rest")
            tensor.CopyFrom(numpy_helper.from_array(near, node.input[0]))
            graph.initializer.append(left)
            made.append(_like(node, [left.name, *node.input[1:]], f"{node.output[0]}.rest"))
            rest[node.output[0]] = made[-1].output[0]
        elif len(node.input) > 1 and node.input[1] in rest:
            sum_of = node.output[0]
            node.output[0] = f"{sum_of}.near"
            made.append(_like(node, [node.input[0], rest[node.input[1]]], f"{sum_of}.rest"))
            made.append(helper.make_node("Add", [node.output[0], made[-1].output[0]], [sum_of]))
    _replace_nodes(graph, made)


def _like(node: Any, inputs: list[str], output: str) -> Any:
    from onnx import helper

    other = helper.make_node(node.op_type, inputs, [output])
    other.attribute.extend(node.attribute)
    return other
