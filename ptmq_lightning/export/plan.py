"""Where the tensors of an exported graph become integers.

A layer's output that is only clipped, moved or scaled before its quantizer becomes integers at once: rounding is
monotone, so ReLU, ReLU6 and max pooling commute with it, and what only moves values does it on bytes. ONNX Runtime has
no integer convolution with a float output, so that one which the simulation keeps in float (before a shortcut is added)
gets 8 bits over its range on real images: with the image's and those of biases, the roundings that the simulation has
only where compose.deploy put them in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ptmq_lightning.export.flow import CONSTANT, CONVOLUTIONS, Op
from ptmq_lightning.export.onnx_moves import MOVES, pads_zeros
from ptmq_lightning.export.values import LayerRow, QuantizerRow, Table
from ptmq_lightning.runtime.layers import ActivationQuantizer

RELU = {"ReLU", "relu"}
RELU6 = {"ReLU6", "relu6"}
QUANTIZER = "ActivationQuantizer"


@dataclass
class Plan:
    """table: rows of the parameters. at: operation -> the quantizer of its output. absorbed: operations that a
    quantizer took over. watched: 8-bit quantizer -> the operation whose range it needs. floating: layers on a float
    input."""

    table: Table = field(default_factory=Table)
    at: dict[Op, str] = field(default_factory=dict)
    absorbed: set[Op] = field(default_factory=set)
    watched: dict[str, Op] = field(default_factory=dict)
    floating: list[str] = field(default_factory=list)


def plan(ops: Sequence[Op], *, early: bool = True, image: bool = False) -> Plan:
    """early: integers as soon as possible, and convolutions with an integer output; else where the simulation has its
    quantizers. image: 8-bit integers from the image on, where the first layer's output becomes integers at once (it
    does in convolutional networks; a ViT's patches are 1 % of its work)."""
    result = Plan()
    seconds = [op.args[1] for op in ops if op.key == "QuantMatmul"]
    for op in ops:
        if op.key == QUANTIZER:
            _place(op, result, early, signed=early and op in seconds)
    first = ops[0].users
    if image and len(first) == 1 and first[0] in result.at and ops[0] not in result.at:
        _eight_bits(ops[0], ops[0], "image", result)
    for op in ops:
        if op.key not in (*CONVOLUTIONS, "QuantLinear"):
            continue
        source = _source(op, result)
        bias = any(getattr(op.module, name, None) is not None for name in ("bias", "biases"))
        result.table.layers[op.path] = LayerRow(op.path, source, op.key == "QuantLinear", bias)
        if source is None:
            result.floating.append(op.path)
        elif early and op.key in CONVOLUTIONS and op not in result.at:
            clipped = len(op.users) == 1 and op.users[0].key in RELU | RELU6
            _eight_bits(op, op.users[0] if clipped else op, f"{op.path}.output", result, relu=clipped)
    return result


def _place(op: Op, result: Plan, early: bool, signed: bool) -> None:
    """Put the quantizer `op` where its tensor is made, if nobody else reads it on the way."""
    module = op.module
    assert isinstance(module, ActivationQuantizer)
    root, chain = op.source, list[Op]()
    while root is not None and len(root.users) == 1 and _moves(root):
        chain.insert(0, root)
        root = root.source
    if not early or root is None or len(root.users) != 1 or root.key == QUANTIZER:
        root, chain = op, []
    signed = signed and root.key not in CONVOLUTIONS  # QLinearConv makes the type that it reads, which is u8
    relu, upper, factor = False, None, 1.0
    for link in chain:
        if link.key in RELU | RELU6:
            relu, upper = True, min(upper or math.inf, 6.0 * factor) if link.key in RELU6 else upper
        if link.key == "mul":
            factor *= float(link.args[1])
            upper = upper and upper * float(link.args[1])
        if link.key in RELU | RELU6 | {"mul"}:
            result.absorbed.add(link)
    result.table.quantizers[op.path] = QuantizerRow(
        op.path, module.owner, module.pin, signed, relu, upper, factor, table=module.tables is not None
    )
    result.at[root] = op.path
    if root is not op:
        result.absorbed.add(op)


def _moves(op: Op) -> bool:
    """What commutes with rounding to a grid."""
    if op.key == "mul":
        return len(op.args) == 2 and isinstance(op.args[1], (int, float)) and op.args[1] > 0
    if op.source is None or op.source.shape is None:
        return False  # a member of a tuple, a size
    if op.key == "pad" and not pads_zeros(op):
        return False
    return op.key in MOVES or op.key in RELU | RELU6 | {"pad"}


def _eight_bits(op: Op, watched: Op, name: str, result: Plan, relu: bool = False) -> None:
    result.table.quantizers[name] = QuantizerRow(name, None, relu=relu)
    result.at[op] = name
    result.watched[name] = watched
    if relu:
        result.absorbed.add(watched)


def all_integer(ops: Sequence[Op], result: Plan) -> None:
    """Give 8 bits over its range to every tensor that has no quantizer yet, the image and the logits among them: for
    runtimes that know nothing but integers."""
    for op in ops:
        if op.shape is None or op.key == CONSTANT or op in result.at or op in result.absorbed:
            continue
        if op is ops[0]:
            _eight_bits(op, op, "image", result)
        elif not _moves(op) or op.key in RELU | RELU6 | {"mul"}:
            clipped = len(op.users) == 1 and op.users[0].key in RELU and op.users[0] not in result.at
            _eight_bits(op, op.users[0] if clipped else op, f"{op.name}.output", result, relu=clipped)
    for name in list(result.floating):
        layer = next(op for op in ops if op.path == name)
        result.table.layers[name] = replace(result.table.layers[name], source=_source(layer, result))
    result.floating.clear()


def _source(op: Op, result: Plan) -> str | None:
    """The quantizer of the layer's input."""
    at: Op | None = op.source
    while at is not None:
        if at in result.at:
            return result.at[at]
        if at not in result.absorbed and not _moves(at):
            return None
        at = at.source
    return None
