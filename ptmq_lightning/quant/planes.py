"""Soft rounding: a variable V that says for every weight whether it goes up, in planes that widths share, or an offset.

Source: PTMQ §1.2 (soft rounding, one R for all widths), §9.1 (offset), §9.4 (learned step sizes).
The autograd functions keep only what the gradient needs; the arithmetic is runtime.grid's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant import kernels
from ptmq_lightning.quant import rounding as soft
from ptmq_lightning.quant.learned import ROUNDINGS, LearnedWeight, RoundingKeys
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.weights import MultiBitWeight


class _SoftWeight(torch.autograd.Function):
    """W^ = clip(floor(u) + h(V), low, high) * s with gradients to V and s; all but s (O, 1) are (O, n)."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, floor: Tensor, step: Tensor, low: Tensor, high: Tensor) -> Tensor:
        weight, to_v, to_step = kernels.soft_weight(v, floor, step, low, high)
        ctx.save_for_backward(to_v, to_step)
        return weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_v, to_step = ctx.saved_tensors
        grad_step = (grad * to_step).sum(1, keepdim=True) if ctx.needs_input_grad[2] else None
        return grad * to_v, None, grad_step, None, None


class _Penalty(torch.autograd.Function):
    """sum of 1 - |2h(V) - 1|^beta over V (n,), a scalar."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: Tensor) -> Tensor:
        total, gradient = kernels.penalty(v, beta)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None


class SoftWeight(LearnedWeight):
    """A weight whose rounding V (O, ...) is a parameter for each plane; widths of one plane share it (PTMQ §1.2). A
    width without a plane is rounded to nearest: its codes stay, its step size may be learned.

    Which width has which plane is all in which the variants differ; `Offset` reads one V in another way.
    """

    stored = "planes"  # how the artifact keeps what was learned

    def __init__(self, frozen: MultiBitWeight, keys: RoundingKeys, *, learn_step_sizes: bool) -> None:
        super().__init__(frozen, keys, learn_step_sizes=learn_step_sizes)
        self.plane_of = self.planes(frozen.widths, keys)
        positions = {b: grid.position(frozen.latent, rho) for b, rho in zip(frozen.widths, frozen.ratios, strict=True)}
        self.floors = {bits: torch.floor(u) for bits, u in positions.items()}
        fractions = {bits: u - self.floors[bits] for bits, u in positions.items()}
        self.nearest = {
            b: grid.levels(frozen.latent, rho, b)
            for b, rho in zip(frozen.widths, frozen.ratios, strict=True)
            if b not in self.plane_of
        }
        self.v = nn.ParameterList(nn.Parameter(start) for start in self.starts(fractions))

    @classmethod
    @abstractmethod
    def planes(cls, widths: Sequence[int], keys: RoundingKeys) -> dict[int, int]:
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

    def undecided(self, widths: set[int]) -> list[Tensor]:
        rows = {self.plane_of[bits] for bits in self._penalized(widths)}
        return [soft.rectified_sigmoid(self.v[row]) for row in sorted(rows)]

    def regularizer(self, drawn: set[int], beta: float) -> Tensor:
        """sum of 1 - |2h(V) - 1|^beta, once per plane that a drawn width uses (PTMQ §1.5)."""
        one_per_plane = {self.plane_of[bits]: bits for bits in self._penalized(drawn)}.values()
        return self._penalties(list(one_per_plane), beta).sum() if one_per_plane else super().regularizer(drawn, beta)

    def _penalized(self, drawn: set[int]) -> list[int]:
        """The drawn widths that this weight has, its widest where it has none of them (a pinned layer); of these, the
        ones with a plane."""
        widths = [b for b in self.frozen.widths if b in drawn] or list(self.frozen.widths[-1:])
        return [b for b in widths if b in self.plane_of]

    def _penalties(self, widths: list[int], beta: float) -> Tensor:
        exponent = self.floors[widths[0]].new_full((), beta)
        return torch.stack([_Penalty.apply(self.logits(b).flatten(), exponent) for b in widths])  # type: ignore

    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        floor = self.floors[self.bits]
        step = grid.per_channel(self.step_size(self.bits), floor)
        if self.bits in self.nearest:
            return self.nearest[self.bits] * step
        low, high = (floor.new_full((), limit) for limit in grid.limits(self.bits))
        flat = self.logits(self.bits).flatten(1), floor.flatten(1), step.flatten(1)
        result: Tensor = _SoftWeight.apply(*flat, low, high)  # type: ignore[no-untyped-call]
        return result.view(floor.shape)

    def decided(self) -> Tensor:
        """What is stored of V, uint8 (planes, O, ...): R = [V >= 0]."""
        return torch.stack([(v >= 0).to(torch.uint8) for v in self.v])

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The runtime weight with the learned rounding and step sizes; the integers are the same."""
        frozen = self.frozen
        weight = MultiBitWeight(frozen.latent, frozen.latent_step, frozen.widths, self.step_sizes(), frozen.ratios)
        if self.plane_of:
            weight.set_rounding(self.stored, self.decided(), self.plane_of)
        weight.select(self.bits)
        return weight


@ROUNDINGS.register("shared")
class Shared(SoftWeight):
    """One binary R for all widths, the paper's."""

    @classmethod
    def planes(cls, widths: Sequence[int], keys: RoundingKeys) -> dict[int, int]:
        return {bits: 0 for bits in widths}


@ROUNDINGS.register("offset")
class Offset(Shared):
    """One tau in [0, 1] for all widths, which moves the place where every width rounds up (PTMQ §9.1).

    V_b = V0(phi_b) + dV: each width starts at its own nearest rounding, and one dV is learned for all of them.
    """

    stored = "offset"

    def starts(self, fractions: dict[int, Tensor]) -> list[Tensor]:
        self.offsets = {bits: soft.start(phi) for bits, phi in fractions.items()}
        return [torch.zeros_like(next(iter(fractions.values())))]

    def logits(self, bits: int) -> Tensor:
        return super().logits(bits) + self.offsets[bits]

    def regularizer(self, drawn: set[int], beta: float) -> Tensor:
        """The mean over the drawn widths: each reads dV at another place."""
        return self._penalties(self._penalized(drawn), beta).mean()

    def decided(self) -> Tensor:
        """tau in 31sts."""
        return torch.round(soft.rectified_sigmoid(self.v[0]) * (2**grid.OFFSET_BITS - 1)).to(torch.uint8).unsqueeze(0)


@ROUNDINGS.register("per_group")
class PerGroup(SoftWeight):
    """One R for each listed set of weight widths; a width in none of them is rounded to nearest.

    The wide widths need no R: with a step size of their own and their biases corrected, nearest rounding is level with
    a rounding that is learned for one width alone, while an R that several of them share is wrong for most
    (PTMQ §1.4).
    """

    @classmethod
    def check(cls, keys: RoundingKeys) -> None:
        if not keys.planes:
            raise ConfigError(
                "found rounding 'per_group' without planes; expected sets of widths: rounding.planes=[[3],[4,8]]."
            )

    @classmethod
    def planes(cls, widths: Sequence[int], keys: RoundingKeys) -> dict[int, int]:
        listed = {bits: row for row, plane in enumerate(keys.planes) for bits in plane}
        chosen = {b: listed[b] for b in widths if b in listed}
        used = sorted(set(chosen.values()))
        return {bits: used.index(row) for bits, row in chosen.items()}


@ROUNDINGS.register("per_width")
class PerWidth(SoftWeight):
    """One R for each width."""

    @classmethod
    def planes(cls, widths: Sequence[int], keys: RoundingKeys) -> dict[int, int]:
        return {bits: row for row, bits in enumerate(widths)}
