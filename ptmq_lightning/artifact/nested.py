"""A weight as one floor code that narrower widths shift: smaller than the latent grid, without the float network.

Source: PTMQ §2, `nested`. Where rho_b = rho_t * 2^-k exactly, floor(u_b) = floor(u_t) >> k, so the floor code of the
widest tied width t and the rounding bits are all that the tied widths need; every other width keeps its own codes.
Floor codes are clipped to t bits; one below the range is stored as the lowest with its rounding bits 0, so that shifted
codes stay exact. Rounding to nearest needs no rounding bit but a floor code of twice the position: floor(u + 1/2) =
(floor(2 u) + 1) >> 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptmq_lightning.artifact.fields import bits_per_weight
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError, ModelError
from ptmq_lightning.runtime.switchable import index_of
from ptmq_lightning.runtime.weights import ALL, CommittedWeight, MultiBitWeight

PACKINGS = ("latent", "nested", "auto")


class NestedWeight(CommittedWeight):
    """A committed weight without its latent. O output channels, K widths, T tied widths, P rounding planes.

    steps s and zero points z (K, O), which tied widths lack. parts: floor int16 (O, ...) and shifts uint8 (T, O) where
    widths are tied, rounding uint8 (P, O, ...) of the tied widths' planes, code_<b> int8 (O, ...) of every other width.
    kind: "planes" or "nearest".
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        steps: Tensor,
        tied: tuple[int, ...],
        kind: str,
        plane_of: Mapping[int, int],
        parts: Mapping[str, Tensor],
        zero_points: Tensor | None = None,
    ) -> None:
        super().__init__(widths, steps, zero_points)
        self.tied, self.kind, self.plane_of = tuple(tied), kind, dict(plane_of)
        for name, tensor in parts.items():
            self.register_buffer(name, tensor)
        self.bits = self.widths[-1]

    has_float = False
    floor: Tensor
    shifts: Tensor
    rounding: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.floor.shape if self.tied else self.get_buffer(f"code_{self.widths[0]}").shape

    def code(self, bits: int, rows: slice = ALL) -> Tensor:
        index_of(bits, self.widths, "the weight")
        if bits not in self.tied:
            return self.get_buffer(f"code_{bits}")[rows]
        floor = self.floor[rows]
        code = floor >> grid.per_channel(self.shifts[self.tied.index(bits)][rows], floor)
        if self.kind == "nearest":
            code = code.add_(1) >> 1
        else:
            code.add_(self.rounding[self.plane_of[bits], rows])
        return code.clamp_(*grid.limits(bits)).to(torch.int8)

    def at(self, bits: int | None) -> Tensor:
        return super().at(self._no_float(bits))

    def select(self, bits: int | None) -> None:
        super().select(self._no_float(bits))

    def _no_float(self, bits: int | None) -> int:
        if bits is None:
            raise ModelError(
                f"the float network is not in this model: a weight was stored as its codes at "
                f"{', '.join(map(str, self.widths))} bits; expected a width. Save with packing='latent' to keep it."
            )
        return bits

    def spec(self) -> dict[str, Any]:
        spec = _spec(self.shape, self.widths, self.tied, self.kind, len(set(self.plane_of.values())))
        return spec | {"plane_of": {str(b): p for b, p in self.plane_of.items()}} | self.moves()


def _spec(shape: torch.Size, widths: tuple[int, ...], tied: tuple[int, ...], kind: str, planes: int) -> dict[str, Any]:
    names = {"widths": list(widths), "tied": list(tied), "kind": kind, "planes": planes}
    return {"packing": "nested", "shape": list(shape)} | names


def choose(name: str, weight: CommittedWeight, packing: str) -> CommittedWeight:
    """The weight of layer `name` in the form that `packing` stores; it is the weight itself where nothing changes.

    latent: whatever the steps. nested: the smallest form that gives every code, refused where the latent one is
    smaller. auto: the smaller of the two in each layer, latent where they are equal. Raises ModelError, ConfigError.
    """
    if packing not in PACKINGS:
        raise ConfigError(f"found packing={packing!r}; expected one of {', '.join(PACKINGS)}.")
    if not isinstance(weight, MultiBitWeight):
        if packing == "latent":
            raise ModelError(
                f"layer '{name}' holds codes only and no latent, as it was loaded from a nested artifact; expected "
                f"packing='nested' or 'auto'. The latent is in an artifact that was saved with packing='latent'."
            )
        return weight
    if packing == "latent":
        return weight
    nested = nested_of(weight)
    as_codes, as_latent = bits_per_weight(nested.spec()), bits_per_weight(weight.spec())
    if packing == "nested" and as_codes > as_latent:
        free = ", ".join(str(b) for b in weight.widths if b not in nested.tied)
        raise ModelError(
            f"layer '{name}' takes {as_codes} bits per weight as nested and {as_latent} as latent, because its widths "
            f"{free} are tied to no other by powers of two or are rounded by an offset; expected nested steps "
            f"(step_size=nested) and rounding bits. Save with packing='latent' or 'auto'."
        )
    return nested if packing == "nested" or as_codes < as_latent else weight


@torch.no_grad()
def nested_of(weight: MultiBitWeight) -> NestedWeight:
    """The same codes at every width and the same steps, in as few bits as tied widths allow."""
    tied, shifts = _trunk(weight)
    parts: dict[str, Tensor] = {}
    plane_of: dict[int, int] = {}
    if tied:
        twice = not _reads_plane(weight, tied[-1])
        position = torch.floor(
            grid.position(weight.integers, weight.ratios[weight.widths.index(tied[-1])]) * (1 + twice)
        )
        low, high = grid.limits(tied[-1] + twice)
        parts |= {"floor": position.clamp(low, high).to(torch.int16), "shifts": shifts}
        if not twice:
            used = sorted({weight.plane_of[b] for b in tied})
            plane_of = {b: used.index(weight.plane_of[b]) for b in tied}
            parts["rounding"] = weight.rounding[used] * (position >= low)
    parts |= {f"code_{b}": weight.code(b) for b in weight.widths if b not in tied}
    # Where nothing is tied the codes tell all, and the kind is that of the weight they were made of.
    kind = "planes" if (plane_of if tied else weight.kind in ("planes", "offset")) else "nearest"
    nested = NestedWeight(weight.widths, weight.steps, tied, kind, plane_of, parts, weight.zero_points)
    nested.bits = weight.bits or nested.bits
    return nested


def _reads_plane(weight: MultiBitWeight, bits: int) -> bool:
    return weight.kind == "planes" and bits in weight.plane_of


def _trunk(weight: MultiBitWeight) -> tuple[tuple[int, ...], Tensor]:
    """The tied widths, narrow to wide, whose form is smallest, and their shifts uint8 (T, O); none is a choice too."""
    shape, widths = weight.latent.shape, weight.widths
    best: tuple[int, ...] = ()
    shifts = torch.zeros((0, shape[0]), dtype=torch.uint8, device=weight.latent.device)
    least = bits_per_weight(_spec(shape, widths, best, "planes", 0))
    for top in widths if weight.kind != "offset" else ():
        # A floor code holds either the position, for widths with a plane, or twice the position, for those without.
        level = [b for b in widths if b <= top and b not in weight.moved]  # a shift knows of no zero point
        alike = [b for b in level if top in level and _reads_plane(weight, b) == _reads_plane(weight, top)]
        found = {b: k for b in alike if (k := _shift(weight, b, top)) is not None}
        kind = "planes" if _reads_plane(weight, top) else "nearest"
        planes = len({weight.plane_of[b] for b in found}) if kind == "planes" else 0
        bits = bits_per_weight(_spec(shape, widths, tuple(found), kind, planes))
        if len(found) > 1 and bits < least:
            least, best, shifts = bits, tuple(found), torch.stack(list(found.values()))
    return best, shifts


def _shift(weight: MultiBitWeight, bits: int, top: int) -> Tensor | None:
    """k (O,) with rho_bits * 2^k = rho_top exactly and 0 <= k <= top - bits in each channel, or None."""
    narrow, wide = (weight.ratios[weight.widths.index(b)] for b in (bits, top))
    k = torch.round(torch.log2(wide / narrow))
    exact = bool(((narrow * torch.exp2(k) == wide) & (k >= 0) & (k <= top - bits)).all())
    return k.to(torch.uint8) if exact else None
