"""A committed weight whose integers stay and whose step sizes are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant.learned import LearnedWeight, RoundingKeys
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import MultiBitWeight


class KeptCodes(LearnedWeight):
    """W^ = (q - z/2) s: the codes q (O, ...) of every width as they were committed, and steps s (O,) that are learned.

    A layer's output is linear in the step of its channel, so that their gradient is found there, by `tell`: that of
    the weight itself, one of the three products that a layer takes in a step, is never computed.
    """

    def __init__(self, frozen: MultiBitWeight) -> None:
        super().__init__(frozen, RoundingKeys("nearest"), learn_step_sizes=True)
        self.codes = {bits: frozen.code(bits) for bits in frozen.widths}

    def learned(self) -> list[nn.Parameter]:
        return []

    @torch.no_grad()
    def forward(self) -> Tensor:
        if self.bits is None:
            return self.frozen.at(None)
        levels = self.codes[self.bits].float()
        if (zero := self.frozen.zero_point(self.bits)) is not None:
            levels.sub_(grid.half_levels(zero, levels))
        return levels.mul_(grid.per_channel(self.step_size(self.bits), levels))

    def tell(self, output: Tensor, bias: Tensor, channel: int) -> Tensor:
        """The output of a layer on this weight, whose channels are its dimension ``channel``, with gradients to the
        step sizes of the active width and to the bias (O,) that it holds."""
        log_gain = self.log_gain[str(self.bits)]
        found: Tensor = _OfStepsAndBias.apply(output, log_gain, bias, channel)  # type: ignore[no-untyped-call]
        return found

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """The same integers and rounding with the learned step sizes."""
        weight = self.with_step_sizes()
        weight.set_rounding(self.frozen.kind, self.frozen.rounding, self.frozen.plane_of)
        return weight


class _OfStepsAndBias(torch.autograd.Function):
    """y = e^g z + b as it is; dy/dg = y - b, dy/db = 1."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, log_gain: Tensor, bias: Tensor, channel: int) -> Tensor:
        ctx.save_for_backward(output, bias)
        ctx.channel = channel % output.dim()
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        output, bias = ctx.saved_tensors
        others = [dim for dim in range(grad.dim()) if dim != ctx.channel]
        of_bias = grad.sum(others)
        return grad, (grad * output).sum(others) - bias * of_bias, of_bias, None
