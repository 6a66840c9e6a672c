"""Integer weights that do not change and a width that does: what a layer's `weight` module is once it is committed."""

from __future__ import annotations

import operator
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.switchable import SwitchableWeight, index_of

ALL = slice(None)


class Snapshot:
    """Tensors as they were: `holds` tells whether they are still the same objects and were not written to."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self.counted = not any(tensor.is_inference() for tensor in tensors)  # those count no writes
        self.versions = [tensor._version for tensor in tensors] if self.counted else []

    def holds(self, *tensors: Tensor) -> bool:
        same = len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))
        return same and (not self.counted or [tensor._version for tensor in tensors] == self.versions)


class CommittedWeight(SwitchableWeight):
    """One weight at every width: integer codes q, steps s (K, O) and, where a channel has one, zero points z int8
    (K, O) in half levels, W^ = (q - z/2) s; O output channels, K widths."""

    def __init__(self, widths: tuple[int, ...], steps: Tensor, zero_points: Tensor | None = None) -> None:
        super().__init__(widths)
        self.register_buffer("steps", steps)
        rows = [] if zero_points is None else zero_points.any(dim=1).tolist()
        self.moved = tuple(bits for bits, has in zip(widths, rows, strict=False) if has)  # widths with zero points
        self.register_buffer("zero_points", zero_points if self.moved else None)
        self._active: tuple[int | None, Tensor] | None = None

    steps: Tensor
    zero_points: Tensor | None

    @abstractmethod
    def code(self, bits: int, rows: slice = ALL) -> Tensor:
        """Integer codes int8 (O, ...) of a width; rows: of these output channels."""

    def codes_into(self, out: Tensor, bits: int, rows: slice) -> Tensor:
        """The same as whole numbers, written into `out`, float32 (O, ...)."""
        return out.copy_(self.code(bits, rows))

    def zero_point(self, bits: int, rows: slice = ALL) -> Tensor | None:
        """z int8 (O,) of a width in half levels; None where all are 0."""
        return self.zero_points[self.widths.index(bits), rows] if bits in self.moved else None  # type: ignore[index]

    def multiples(self, bits: int) -> tuple[Tensor, Tensor]:
        """Whole numbers int8 (O, ...) and steps (O,) whose product is the weight of a width: its codes, where it has no
        zero points."""
        zero = self.zero_point(bits)
        step = grid.whole_step(self.steps[self.widths.index(bits)], zero)
        return self.code(bits) if zero is None else grid.multiples(self.code(bits), zero), step

    def moves(self) -> dict[str, Any]:
        """What spec() says of zero points: nothing where there are none, and an older reader refuses what it says."""
        return {"moved": list(self.moved)} if self.moved else {}

    def held_bits(self, bits: int) -> int:
        """Bits of a signed integer that hold the `multiples` of a width."""
        return bits + (bits in self.moved)

    def fixed_step(self) -> Tensor | None:
        if self.bits is None:
            return None
        step = grid.whole_step(self.steps[self.widths.index(self.bits)], self.zero_point(self.bits))
        return grid.held_step(step, self.held_bits(self.bits))

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values from which, with its tensors, the weight is built again; shape (O, ...) among them."""

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, where the weight has it.

        Made in pieces that stay in the processor's cache, so that it costs little more than writing it once.
        """
        assert bits is not None
        step = self.steps[index_of(bits, self.widths, "the weight")]
        weight = torch.empty(self.shape, device=step.device)
        rows = max(1, grid.PIECE // max(1, weight[0].numel()))
        for first in range(0, len(weight), rows):
            part = slice(first, first + rows)
            levels = self.codes_into(weight[part], bits, part)
            if (zero := self.zero_point(bits, part)) is not None:
                levels.sub_(grid.half_levels(zero, levels))
            levels.mul_(grid.per_channel(step[part], weight))
        return weight

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(O, ...)"""

    def use(self, weight: Tensor) -> None:
        """Run on this tensor, made by at(bits) of the selected width, until another width is selected."""
        self.__dict__["_active"] = (self.bits, weight)

    def ready(self) -> Tensor | None:
        return None if self._active is None else self._active[1]

    def forward(self) -> Tensor:
        if self._active is None or self._active[0] != self.bits or self._active[1].device != self.steps.device:
            self.use(self.made())
        assert self._active is not None
        return self._active[1]

    def made(self) -> Tensor:
        """The weight at the selected width, fit to serve later passes of any mode."""
        with torch.inference_mode(False), torch.no_grad():
            return self.at(self.bits)


class MultiBitWeight(CommittedWeight):
    """A weight on the latent grid. P rounding planes.

    latent n int16 (O, ...), latent_step s_L (O,), ratios rho (K, O), steps s and zero_points z (K, O), rounding uint8
    (P, O, ...): kind "nearest" (P = 0), "planes" (R, one row per set of widths: plane_of; a width in none is rounded to
    nearest), "offset" (tau in 31sts, P = 1), "latent" (int16, P = 1: learned integers n' that are rounded to nearest in
    the place of n).
    """

    def __init__(
        self,
        latent: Tensor,
        latent_step: Tensor,
        widths: tuple[int, ...],
        steps: Tensor,
        ratios: Tensor | None = None,
        zero_points: Tensor | None = None,
    ) -> None:
        super().__init__(widths, steps, zero_points)
        if ratios is None:
            ratios = torch.stack([grid.ratio(latent_step, step) for step in steps])
        self.kind = "nearest"
        self.plane_of: dict[int, int] = {}
        self.register_buffer("latent", latent)
        self.register_buffer("latent_step", latent_step)
        self.register_buffer("ratios", ratios)
        self.register_buffer("rounding", torch.zeros((0, *latent.shape), dtype=torch.uint8, device=latent.device))

    latent: Tensor
    latent_step: Tensor
    ratios: Tensor
    rounding: Tensor

    def set_rounding(self, kind: str, rounding: Tensor, plane_of: dict[int, int]) -> None:
        """Commit a rounding: uint8 (P, O, ...), of kind "latent" int16."""
        self.kind, self.rounding, self.plane_of, self._active = kind, rounding, dict(plane_of), None

    @property
    def shape(self) -> torch.Size:
        return self.latent.shape

    def code(self, bits: int, rows: slice = ALL) -> Tensor:
        out = torch.empty(self.latent[rows].shape, device=self.latent.device)
        return self.codes_into(out, bits, rows).to(torch.int8)

    def codes_into(self, out: Tensor, bits: int, rows: slice) -> Tensor:
        rho, latent = self.ratios[index_of(bits, self.widths, "the weight")][rows], self.latent[rows]
        zero = self.zero_point(bits, rows)
        if self.kind == "planes" and bits in self.plane_of:
            return grid.codes(latent, rho, bits, self.rounding[self.plane_of[bits], rows], zero, out)
        if self.kind == "offset":
            tau = self.rounding[0, rows].double() / (2**grid.OFFSET_BITS - 1)
            return out.copy_(grid.code_offset(latent, rho, bits, tau, zero))
        return grid.codes(self.integers[rows], rho, bits, None, zero, out)

    @property
    def integers(self) -> Tensor:
        """What is rounded to nearest where nothing else is: n, or the learned n' of kind "latent", int16 (O, ...)."""
        return self.rounding[0] if self.kind == "latent" else self.latent

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, n * s_L."""
        if bits is None:
            return self.latent.float() * grid.per_channel(self.latent_step, self.latent)
        return super().at(bits)

    def spec(self) -> dict[str, Any]:
        return {
            "packing": "latent",
            "shape": list(self.latent.shape),
            "widths": list(self.widths),
            "kind": self.kind,
            "planes": len(self.rounding),
            "plane_of": {str(b): p for b, p in self.plane_of.items()},
        } | self.moves()
