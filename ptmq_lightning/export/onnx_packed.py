"""Weights of b bits in an ONNX file, unpacked by operators of the standard.

A runtime that folds constants does the unpacking when it opens the file, so that the integer kernels behind find s8
constants as they always did (ONNX Runtime folds before it makes integer kernels).

A value of b bits is cut into fields of 4, 2 and 1 bits, each field packed by itself: field j of byte k belongs to value
j * m + k, m bytes in all. Unpacking is then one shift over long rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ptmq_lightning.export.onnx_writer import Writer
from ptmq_lightning.export.values import Array

WORTH = 600  # bytes that packing must save, about what its nodes take
SIGN = 6  # the highest bit of a packed weight: it lies within [-64, 63], on every processor exact (export.portable)
UINT8, INT8, INT32 = 2, 3, 6  # of onnx.TensorProto


def whole(w: Writer, path: str) -> str:
    """The weight of a layer as one s8 tensor."""
    return w.parameter(f"{path}.weight")


def packed(w: Writer, path: str) -> str:
    """The same, stored in as few bits as its values take, where that makes the file smaller."""
    name = f"{path}.weight"
    return as_weight(w, name, name, w.parameters[name]) or whole(w, path)


def as_weight(w: Writer, name: str, stored: str, value: Array) -> str | None:
    """A weight s8 as the tensor `name`, its bits stored under `stored`; None where packing saves too little."""
    found = narrow(value)
    way = min((by_channel(value, axis) for axis in ((0, 1) if value.ndim == 2 else (0,))), key=lambda way: way.size)
    if way.size < value.size * (8 if found is None else found[0]) // 8:
        return None if value.size - way.size < WORTH else _of_channels(w, name, stored, way, value.shape)
    if found is None or value.size * (8 - found[0]) // 8 < WORTH:
        return None
    bits, up = found
    codes = (value.astype(np.int16) >> up) & (2**bits - 1)
    byte = unpacked(w, stored, codes.astype(np.uint8), bits, up)
    sign = w.step("BitwiseAnd", [byte, w.constant(1 << SIGN, np.uint8)])
    sign = w.step("BitShift", [sign, w.constant(1, np.uint8)], direction="LEFT")
    return as_signed(w, name, w.step("BitwiseOr", [byte, sign]), value.shape)


def as_signed(w: Writer, name: str, byte: str, shape: Sequence[int]) -> str:
    """Bytes uint8 (N,), two's complement, as s8 of a shape; ONNX defines this cast (Cast, "out of range")."""
    return str(w.node("Cast", [w.step("Reshape", [byte, w.constant(shape)])], name, to=INT8))


def narrow(value: Array) -> tuple[int, int] | None:
    """(bits, k): a weight s8 is k zero bits behind integers of so many bits, with a sign; None where it takes 8."""
    if value.size == 0 or value.min() < -(1 << SIGN) or value.max() >= 1 << SIGN:
        return None
    used = int(np.bitwise_or.reduce(value.astype(np.uint8), axis=None))
    zeros = next((k for k in range(SIGN) if used >> k & 1), SIGN)
    return SIGN + 1 - zeros, zeros


class ByChannel(NamedTuple):
    """A weight s8 as x 2^up + low: x uint8 of `bits`, up and low a number for each output channel, int8."""

    x: Array
    bits: int
    up: Array
    low: Array

    @property
    def size(self) -> int:
        """Bytes."""
        return self.x.size * self.bits // 8 + self.up.size + self.low.size


def by_channel(value: Array, axis: int) -> ByChannel:
    """Such a form of a weight s8 whose output channels are this axis: it finds what zero points (runtime.grid) do to
    weights of few bits, whose channels have levels of their own."""
    others = tuple(i for i in range(value.ndim) if i != axis)
    low = value.min(axis=others, keepdims=True)
    above = value.astype(np.int16) - low
    used = np.bitwise_or.reduce(above.astype(np.uint8), axis=others, keepdims=True)
    up = np.where(used == 0, 0, np.log2(np.maximum(used & -used.astype(np.int16), 1))).astype(np.int8)
    x = (above >> up).astype(np.uint8)
    return ByChannel(x, max(1, int(x.max()).bit_length()), up, low)


def _of_channels(w: Writer, name: str, stored: str, way: ByChannel, shape: Sequence[int]) -> str:
    x = w.step("Reshape", [unpacked(w, stored, way.x, way.bits), w.constant(shape)])
    x = w.step("BitShift", [x, w.stored(f"{stored}.up", way.up.astype(np.uint8))], direction="LEFT")
    low = w.stored(f"{stored}.low", (way.low.astype(np.int16) + 128).astype(np.uint8))  # s8 is for what is a weight
    x, low = (w.step("Cast", [value], to=INT32) for value in (x, low))
    x = w.step("Sub", [w.step("Add", [x, low]), w.constant(128, np.int32)])
    return str(w.node("Cast", [x], name, to=INT8))


def unpacked(w: Writer, name: str, values: Array, bits: int, up: int = 0) -> str:
    """Values * 2^up as uint8 (N,), of which the file stores so many bits each (1 to 8); values: uint8 of any shape."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if bits == 8:
        return w.stored(f"{name}.8", flat)
    made = ""
    for width, at in fields(bits):
        x = w.stored(f"{name}.{at}", pack(flat >> at, width))
        x = w.step("BitShift", [x, w.constant(np.arange(0, 8, width).reshape(-1, 1), np.uint8)], direction="RIGHT")
        x = w.step("BitwiseAnd", [x, w.constant(2**width - 1, np.uint8)])
        if at + up:
            x = w.step("BitShift", [x, w.constant(at + up, np.uint8)], direction="LEFT")
        x = w.step("Reshape", [x, w.constant([-1])])
        made = w.step("BitwiseOr", [made, x]) if made else x
    if len(flat) % 8:
        made = w.step("Slice", [made, w.constant([0]), w.constant([len(flat)])])
    return made


def fields(bits: int) -> Iterator[tuple[int, int]]:
    """(width, lowest bit) of the fields that values of so many bits are cut into."""
    at = 0
    for width in (4, 2, 1):
        if bits & width:
            yield width, at
            at += width


def pack(values: Array, width: int) -> Array:
    """The lowest 1, 2 or 4 bits of values uint8 (N,) -> bytes uint8; N is filled up to a multiple of 8 by zeros."""
    rows: Array = np.zeros(-(-len(values) // 8) * 8, dtype=np.uint8)
    rows[: len(values)] = values & (2**width - 1)
    rows = rows.reshape(8 // width, -1)
    made: Array = np.bitwise_or.reduce(rows << np.arange(0, 8, width, dtype=np.uint8).reshape(-1, 1), axis=0)
    return made
