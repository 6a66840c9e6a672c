"""Soft rounding: a variable V that says for every weight whether it goes up, in planes that widths share, or an offset.

Source: PTMQ §1.2 (soft rounding, one R for all widths), §9.1 (offset), §9.4 (learned step sizes).
The autograd functions keep only what the gradient needs; the arithmetic is runtime.grid's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant import kernels
from ptmq_lightning.quant import rounding as soft
from ptmq_lightning.quant.learned import ROUNDINGS, LearnedWeight, RoundingKeys
from ptmq_lightning.quant.together import Softened
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.weights import MultiBitWeight


class _SoftWeight(torch.autograd.Function):
    """W^ = clip(floor(u) + h(V), low, high) * s with gradients to V and s.

    v, floor: of the weight's shape (O, ...). h, slope: h(V) and dh/dV, (O, n). step: (O,). low, high: scalars or
    (O, 1). With zero points z, floor, low and high are levels: z/2 less than the codes.
    """

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, h: Tensor, slope: Tensor, floor: Tensor, step: Tensor, low: Tensor, high: Tensor
    ) -> Tensor:
        flat = floor.flatten(1), step.unsqueeze(1)
        weight, to_v, to_step = kernels.soft_weight(h, slope, *flat, low, high)
        ctx.save_for_backward(to_v, to_step)
        return weight.view(floor.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_v, to_step = ctx.saved_tensors
        flat = grad.flatten(1)
        grad_step = (flat * to_step).sum(1) if ctx.needs_input_grad[4] else None
        return (flat * to_v).view(grad.shape), None, None, None, grad_step, None, None


class SoftWeight(LearnedWeight):
    """A weight whose rounding V (O, ...) is a parameter for each plane; widths of one plane share it (PTMQ §1.2). A
    width without a plane is rounded to nearest: its codes stay, its step size may be learned.

    Which width has which plane is all in which the variants differ; `Offset` reads one V in another way.
    """

    stored = "planes"  # how the artifact keeps what was learned

    def __init__(self, frozen: MultiBitWeight, keys: RoundingKeys, *, learn_step_sizes: bool) -> None:
        super().__init__(frozen, keys, learn_step_sizes=learn_step_sizes)
        self.plane_of = self.planes(frozen, keys)
        zeros = {bits: frozen.zero_point(bits) for bits in frozen.widths}
        rows = list(zip(frozen.widths, frozen.ratios, strict=True))
        positions = {bits: grid.position(frozen.latent, rho, zeros[bits]) for bits, rho in rows}
        self.floors = {bits: torch.floor(u) for bits, u in positions.items()}
        fractions = {bits: u - self.floors[bits] for bits, u in positions.items()}
        self._limits = {b: tuple(frozen.latent_step.new_full((), end) for end in grid.limits(b)) for b in frozen.widths}
        self.nearest = {
            bits: grid.codes(frozen.latent, rho, bits, zero=zeros[bits])
            for bits, rho in rows
            if bits not in self.plane_of
        }
        for bits, zero in ((b, z) for b, z in zeros.items() if z is not None):  # from codes to levels
            half = grid.half_levels(zero, frozen.latent)
            self.floors[bits] -= half
            self._limits[bits] = tuple(end - half.flatten(1) for end in self._limits[bits])
            if bits in self.nearest:
                self.nearest[bits] -= half
        self.v = nn.ParameterList(nn.Parameter(start) for start in self.starts(fractions))

    @classmethod
    @abstractmethod
    def planes(cls, weight: MultiBitWeight, keys: RoundingKeys) -> dict[int, int]:
        """Weight width -> plane; a width that is left out is rounded to nearest."""

    def starts(self, fractions: dict[int, Tensor]) -> list[Tensor]:
        """V at the start, for each plane: h(V) is the fraction of u of one of its widths."""
        return [soft.start(fractions[self._start_width(plane)]) for plane in sorted(set(self.plane_of.values()))]

    def _start_width(self, plane: int) -> int:
        """The width whose fraction V starts from: init_width where the plane has it, else the plane's lowest."""
        widths = [bits for bits, row in self.plane_of.items() if row == plane]
        return min(widths, key=lambda bits: (bits != self.keys.init_width, bits))

    def logits(self, bits: int) -> Tensor:
        """V (O, ...) of a width."""
        v: Tensor = self.v[self.plane_of[bits]]
        return v

    def learned(self) -> list[nn.Parameter]:
        return list(self.v)

    def read_by(self) -> list[list[int]]:
        rows = sorted(set(self.plane_of.values()))
        return [[bits for bits, plane in self.plane_of.items() if plane == row] for row in rows]

    def undecided(self, widths: set[int]) -> list[Tensor]:
        own = [b for b in self.frozen.widths if b in widths] or self.frozen.widths[-1:]  # none: a pinned layer's
        rows = {self.plane_of[bits] for bits in own if bits in self.plane_of}
        return [soft.rectified_sigmoid(self.v[row]) for row in sorted(rows)]

    def variables(self, widths: Iterable[int]) -> dict[int, Tensor]:
        return {bits: self.logits(bits) for bits in widths if bits in self.plane_of}

    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        step = self.step_size(self.bits)
        if self.bits in self.nearest:
            return self.nearest[self.bits] * grid.per_channel(step, self.nearest[self.bits])
        soft = self.soft[self.bits] if self.bits in self.soft else next(iter(Softened([self.logits(self.bits)])))
        result: Tensor = _SoftWeight.apply(*soft, self.floors[self.bits], step, *self._limits[self.bits])  # type: ignore[no-untyped-call]
        return result

    def decided(self) -> Tensor:
        """What is stored of V, uint8 (planes, O, ...): R = [V >= 0]."""
        return torch.stack([(v >= 0).to(torch.uint8) for v in self.v])

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The runtime weight with the learned rounding and step sizes; the integers are the same."""
        weight = self.with_step_sizes()
        if self.plane_of:
            weight.set_rounding(self.stored, self.decided(), self.plane_of)
        return weight


@ROUNDINGS.register("shared")
class Shared(SoftWeight):
    """One binary R for all widths, the paper's."""

    @classmethod
    def planes(cls, weight: MultiBitWeight, keys: RoundingKeys) -> dict[int, int]:
        return {bits: 0 for bits in weight.widths}


@ROUNDINGS.register("offset")
class Offset(Shared):
    """One tau in [0, 1] for all widths, which moves the place where every width rounds up (PTMQ §9.1).

    V_b = V0(phi_b) + dV: each width starts at its own nearest rounding, and one dV is learned for all of them.
    """

    stored = "offset"
    averaged = True  # each width reads dV at another place

    def starts(self, fractions: dict[int, Tensor]) -> list[Tensor]:
        self.offsets = {bits: soft.start(phi) for bits, phi in fractions.items()}
        return [torch.zeros_like(next(iter(fractions.values())))]

    def logits(self, bits: int) -> Tensor:
        return super().logits(bits) + self.offsets[bits]

    def decided(self) -> Tensor:
        """tau in 31sts."""
        return torch.round(soft.rectified_sigmoid(self.v[0]) * (2**grid.OFFSET_BITS - 1)).to(torch.uint8).unsqueeze(0)


@ROUNDINGS.register("per_group")
class PerGroup(SoftWeight):
    """One R for each listed set of weight widths; a width in none of them is rounded to nearest, but where that is far
    off.

    The wide widths need no R: with a step size of their own and their biases corrected, nearest rounding is level with
    a rounding that is learned for one width alone, while an R that several of them share is wrong for most
    (PTMQ §1.4). Which widths are wide, the weight says: some mobile networks have layers with a few large weights in
    every channel, where 5 bits are as coarse as 4 are elsewhere. A width that is not listed has an R of its own in the
    layers where nearest rounding's error is more than `tolerance` of the weight's power.
    """

    @classmethod
    def check(cls, keys: RoundingKeys) -> None:
        if not keys.planes:
            raise ConfigError(
                "found rounding 'per_group' without planes; expected sets of widths: rounding.planes=[[3],[4,8]]."
            )

    @classmethod
    def planes(cls, weight: MultiBitWeight, keys: RoundingKeys) -> dict[int, int]:
        listed = {bits: row for row, plane in enumerate(keys.planes) for bits in plane}
        chosen = {b: listed[b] for b in weight.widths if b in listed}
        if keys.tolerance is not None:
            off = (b for b in weight.widths if b not in listed and error_of(weight, b) > keys.tolerance)
            chosen |= {b: len(keys.planes) + b for b in off}
        used = sorted(set(chosen.values()))
        return {bits: used.index(row) for bits, row in chosen.items()}


@ROUNDINGS.register("per_width")
class PerWidth(SoftWeight):
    """One R for each width."""

    @classmethod
    def planes(cls, weight: MultiBitWeight, keys: RoundingKeys) -> dict[int, int]:
        return {bits: row for row, bits in enumerate(weight.widths)}


def error_of(weight: MultiBitWeight, bits: int) -> float:
    """sum (W^ - W)^2 / sum W^2 at a width."""
    exact = weight.at(None)
    power = float(exact.square().sum())
    return float((weight.at(bits) - exact).square().sum()) / power if power else 0.0
