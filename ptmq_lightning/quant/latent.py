"""A learned latent weight W' that every width rounds to nearest, straight-through: "ste" and "flexround".

Source: FlexRound (PTMQ §3): W^ = s1 * round(W / (s1 * S2 * s3 * s4)), S2 of W's shape, s3 per output and s4 per input
channel (convolutions), all 1 at the start; dequantized by s1 alone. Here W' = W / (S2 s3 s4) is one tensor for all
widths and s1 is each width's own step size. "ste" adds to W instead of dividing it (LSQ-like fine-tuning of
the weight).
What we do otherwise: training rounds W' to integers n' of the latent grid first (same s_L, PTMQ §2) and takes codes by
runtime.grid's rule from n'; n' is what the artifact stores, so what is trained is what ships. The float network's own
integers n stay beside it.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant.learned import ROUNDINGS, LearnedWeight, RoundingKeys, nearest_width
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import MultiBitWeight

_WIDEST = float(torch.iinfo(torch.int16).max)


class _NearestWeight(torch.autograd.Function):
    """W^ = (clip(round(n' rho + z/2)) - z/2) s with n' = round(W' / s_L); straight-through to W' / s_L, LSQ's gradient
    to s."""

    @staticmethod
    def forward(
        ctx: Any, position: Tensor, step: Tensor, latent_step: Tensor, bits: int, zero: Tensor | None
    ) -> Tensor:
        u = grid.position(torch.round(position), grid.ratio(latent_step, step), zero)
        floor = torch.floor(u)
        raw = floor + (u - floor >= 0.5)  # exact in float32, where adding 1/2 to u is not
        q = raw.clamp(*grid.limits(bits))
        inside = raw == q
        level, u = (q, u) if zero is None else (x - grid.half_levels(zero, x) for x in (q, u))
        ctx.save_for_backward(inside, level - u * inside, latent_step)  # of d/ds: level - u inside, level at the ends
        return level * grid.per_channel(step, level)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inside, slope, latent_step = ctx.saved_tensors
        grad_position = grad * inside * grid.per_channel(latent_step, grad)
        grad_step = (grad * slope).flatten(1).sum(1) if ctx.needs_input_grad[1] else None
        return grad_position, grad_step, None, None, None


class LatentWeight(LearnedWeight):
    """One learned W' (O, ...) for all widths, in units of s_L per channel; `d` are its parameters."""

    stored = "latent"  # how the artifact keeps what was learned

    def __init__(self, frozen: MultiBitWeight, keys: RoundingKeys, *, learn_step_sizes: bool) -> None:
        super().__init__(frozen, keys, learn_step_sizes=learn_step_sizes)
        n = frozen.latent.float()
        self.d = nn.ParameterList(nn.Parameter(n.new_zeros(shape)) for shape in self.shapes(n.shape))
        width = nearest_width(keys.init_width, frozen.widths)
        self._unit = grid.per_channel(frozen.steps[frozen.widths.index(width)] / frozen.latent_step, n)

    def shapes(self, weight: torch.Size) -> list[torch.Size]:
        """Shapes of the parameters d for a weight (O, ...)."""
        return [weight]

    @abstractmethod
    def moved(self, n: Tensor) -> Tensor:
        """W' / s_L (O, ...) for the float network's n = W / s_L, not yet an integer."""

    def learned(self) -> list[nn.Parameter]:
        return list(self.d)

    def position(self) -> Tensor:
        """W' / s_L (O, ...), kept within what an int16 holds."""
        return self.moved(self.frozen.latent.float()).clamp(-_WIDEST, _WIDEST)

    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        place = self.step_size(self.bits), self.frozen.latent_step, self.bits, self.frozen.zero_point(self.bits)
        result: Tensor = _NearestWeight.apply(self.position(), *place)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The runtime weight with the integers n' and the learned step sizes, which here move the codes too."""
        frozen = self.frozen
        shared = frozen.latent, frozen.latent_step, frozen.widths
        weight = MultiBitWeight(*shared, self.step_sizes(), zero_points=frozen.zero_points)
        weight.set_rounding(self.stored, torch.round(self.position()).to(torch.int16).unsqueeze(0), {})
        weight.select(self.bits)
        return weight


@ROUNDINGS.register("ste")
class Ste(LatentWeight):
    """W' = W + d * s, s the step size of init_width, or of the nearest width there is."""

    def moved(self, n: Tensor) -> Tensor:
        moved: Tensor = n + self.d[0] * self._unit
        return moved


@ROUNDINGS.register("flexround")
class FlexRound(LatentWeight):
    """W' = W / exp(d2 + d3 + d4), d2 (O, ...), d3 (O, 1, ...), d4 (1, C, 1, 1) for convolutions."""

    def shapes(self, weight: torch.Size) -> list[torch.Size]:
        rest = [1] * (len(weight) - 2)
        per_input = [torch.Size([1, weight[1], *rest])] if rest else []
        return [weight, torch.Size([weight[0], 1, *rest]), *per_input]

    def moved(self, n: Tensor) -> Tensor:
        first, *others = self.d
        exponent: Tensor = sum(others, first)
        moved: Tensor = n * torch.exp(-exponent)
        return moved
