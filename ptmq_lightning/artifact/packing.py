"""Integers as bit strings (PTMQ §2); which of a weight are stored so stands in `artifact.fields`.

A bit string holds values of L bits (1 to 16) in a row, two's complement, most significant bit first, in the order of
the flattened tensor, with zeros up to the last whole byte. Eight values fill L bytes, so both directions work on groups
of eight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.artifact.fields import fields


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
