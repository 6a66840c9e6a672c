"""A committed weight whose integers stay and whose step sizes are learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptmq_lightning.quant.learned import LearnedWeight, RoundingKeys
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import MultiBitWeight


class KeptCodes(LearnedWeight):
    """W^ = (q - z/2) s: the codes q (O, ...) of every width as they were committed, with gradients to the steps s
    (O,)."""

    def __init__(self, frozen: MultiBitWeight) -> None:
        super().__init__(frozen, RoundingKeys("nearest"), learn_step_sizes=True)
        self.codes = {bits: frozen.code(bits) for bits in frozen.widths}

    def learned(self) -> list[nn.Parameter]:
        return []

    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        levels = self.codes[self.bits].float()
        if (zero := self.frozen.zero_point(self.bits)) is not None:
            levels.sub_(grid.half_levels(zero, levels))
        return levels.mul_(grid.per_channel(self.step_size(self.bits), levels))

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The same integers and rounding with the learned step sizes."""
        weight = self.with_step_sizes()
        weight.set_rounding(self.frozen.kind, self.frozen.rounding, self.frozen.plane_of)
        return weight
