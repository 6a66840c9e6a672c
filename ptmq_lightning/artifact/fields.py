"""Which integers of a weight are stored, and in how many bits (PTMQ §2). Without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ptmq_lightning.runtime.spec import LATENT_BITS, OFFSET_BITS


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
    bits = {"offset": OFFSET_BITS, "latent": 16}.get(spec["kind"], 1)
    rounding = Field(bits, spec["kind"] == "latent", (spec["planes"], *shape))
    if spec["packing"] == "latent":
        found = {"latent": Field(LATENT_BITS, True, shape), "rounding": rounding}
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
