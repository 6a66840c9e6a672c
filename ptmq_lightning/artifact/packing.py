"""Integers as bit strings, and which integers of a weight are stored (PTMQ §2).

A bit string holds values of L bits (1 to 16) in a row, two's complement, most significant bit first, in the order of
the flattened tensor, with zeros up to the last whole byte. Eight values fill L bytes, so both directions work on groups
of eight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.runtime import grid


class Field(NamedTuple):
    """A packed tensor: bits per value, whether they have a sign, and the tensor's shape in memory."""

    bits: int
    signed: bool
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def fields(spec: Mapping[str, Any]) -> dict[str, Field]:
    """The packed tensors of a weight by name. spec: what a weight's spec() says, shape (O, ...) among it."""
    shape = tuple(spec["shape"])
    bits = {"offset": grid.OFFSET_BITS, "latent": 16}.get(spec["kind"], 1)
    rounding = Field(bits, spec["kind"] == "latent", (spec["planes"], *shape))
    if spec["packing"] == "latent":
        found = {"latent": Field(grid.LATENT_BITS, True, shape), "rounding": rounding}
    else:
        found = {"rounding": rounding}
        if spec["tied"]:
            found["floor"] = Field(max(spec["tied"]) + (spec["kind"] == "nearest"), True, shape)
        found |= {f"code_{b}": Field(b, True, shape) for b in spec["widths"] if b not in spec["tied"]}
    return {name: field for name, field in found.items() if field.size}


def bits_per_weight(spec: Mapping[str, Any]) -> int:
    """Bits that each weight takes, without what is stored per channel."""
    weights = math.prod(spec["shape"])
    return sum(field.bits * (field.size // weights) for field in fields(spec).values())


def pack_weight(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A weight's tensors as they are stored: the fields as bit strings, the others as they are."""
    packed = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
    return packed | {name: pack(tensors[name], field.bits) for name, field in fields(spec).items()}


def unpack_weight(spec: Mapping[str, Any], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `pack_weight` packed. Raises ValueError or KeyError where the bytes do not fit the spec."""
    tensors = dict(stored)
    for name, field in fields(spec).items():
        dtype = torch.uint8 if not field.signed else torch.int8 if name.startswith("code_") else torch.int16
        tensors[name] = unpack(stored[name], field.bits, field.size, signed=field.signed).to(dtype).reshape(field.shape)
    return tensors


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers of any shape, N of them, -> uint8 (ceil(N * bits / 8),). What does not fit into `bits` is cut off."""
    flat = values.reshape(-1).numpy()
    groups = -(-len(flat) // 8)
    rows = np.zeros((groups, 8), dtype=np.uint16)
    rows.reshape(-1)[: len(flat)] = flat.astype(np.uint16)
    packed = np.zeros((groups, bits), dtype=np.uint8)
    for value, byte, down, up, mask in _pieces(bits):
        packed[:, byte] |= (((rows[:, value] >> down) & mask) << up).astype(np.uint8)
    return torch.from_numpy(packed.reshape(-1)[: _length(len(flat), bits)].copy())


def unpack(packed: Tensor, bits: int, count: int, *, signed: bool) -> Tensor:
    """The first `count` values of a bit string uint8 (M,) -> int16 (count,); 16 bits are signed."""
    if packed.dtype != torch.uint8 or packed.shape != (_length(count, bits),):
        raise ValueError(f"{count} values of {bits} bits in {tuple(packed.shape)} {packed.dtype}")
    groups = -(-count // 8)
    rows = np.zeros((groups, bits), dtype=np.uint8)
    rows.reshape(-1)[: len(packed)] = packed.numpy()
    values = np.zeros((groups, 8), dtype=np.int16)
    for value, byte, down, up, mask in _pieces(bits):
        values[:, value] |= ((rows[:, byte].astype(np.int16) >> up) & mask) << down
    if signed and bits < 16:
        sign = np.int16(1 << (bits - 1))
        values = (values ^ sign) - sign
    return torch.from_numpy(values.reshape(-1)[:count])


def _length(count: int, bits: int) -> int:
    return -(-count * bits // 8)


def _pieces(bits: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Where the bits of eight values go: (value, byte, shift down in the value, shift up in the byte, mask)."""
    for value in range(8):
        at, left = value * bits, bits
        while left:
            byte, used = divmod(at, 8)
            take = min(8 - used, left)
            yield value, byte, left - take, 8 - used - take, (1 << take) - 1
            at, left = at + take, left - take
