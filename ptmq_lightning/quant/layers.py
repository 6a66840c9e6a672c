"""An activation quantizer whose step size is learned, and the masks that let a share of values pass unquantized.

It stands in the place of its runtime twin while a block is reconstructed, and turns back into it at the commit.
Source: PTMQ §1.2 (LSQ), §1.9 (inner drop). The autograd function keeps only what the gradient needs; its arithmetic is
runtime.grid's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.quant import kernels
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.layout import channels_last, dense, flat, from_rows
from ptmq_lightning.runtime.switchable import SwitchableActivation


class _QuantDrop(torch.autograd.Function):
    """LSQ fake quantization of x (B, ...) with a step s; where `keep` (n,) is 1 the input passes as it is (QDrop), in
    the order in which values lie in memory. The rest is as in `kernels.quantize`.

    Of what is kept for the gradient, the input and the output are kept by the layers on both sides, too.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        low: Tensor,
        high: Tensor,
        keep: Tensor | None,
        levels: Tensor | None = None,
    ) -> Tensor:
        x = dense(x)
        ctx.like = x.shape, x.stride()
        x = flat(x)
        y, inside = kernels.quantize(x, step, low, high, keep, levels)
        ctx.save_for_backward(x, y if ctx.needs_input_grad[1] else None, inside, step)
        return y.as_strided(*ctx.like)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if grad.stride() != ctx.like[1]:
            grad = grad.new_empty_strided(*ctx.like).copy_(grad)
        x, y, inside, step = ctx.saved_tensors
        to_x, to_step = kernels.quantize_backward(flat(grad), x, y, inside, step, ctx.needs_input_grad[0])
        return None if to_x is None else to_x.as_strided(*ctx.like), to_step, None, None, None, None


class MaskBank:
    """Coin flips drawn once; a mask is a slice of them at a random place (a draw per element costs far more)."""

    def __init__(self, seed: int, share: float = 0.5, device: torch.device | str = "cpu", size: int = 1 << 16) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.share, self.device = share, torch.device(device)
        self.bank = self._draw(size)

    def _draw(self, size: int) -> Tensor:
        return (torch.rand(size, generator=self.generator) < self.share).float().to(self.device)

    def __call__(self, shape: torch.Size) -> Tensor:
        """Float mask of a shape: 1 with probability `share`, else 0."""
        return self.flat(shape.numel()).view(shape)

    def like(self, x: Tensor) -> Callable[[torch.Size], Tensor]:
        """Masks of any number of features such as x (B, ...), which lie in memory as they do."""
        last = channels_last(x)
        return lambda shape: from_rows(self.flat(shape.numel()).view(shape[0], -1), shape, last=last)

    def flat(self, count: int) -> Tensor:
        """(count,)"""
        if 2 * count > len(self.bank):  # room for many different slices
            self.bank = self._draw(4 * count)
        first = int(torch.randint(len(self.bank) - count + 1, (), generator=self.generator))
        return self.bank[first : first + count]


class TrainableActivation(SwitchableActivation):
    """An ActivationQuantizer whose log step of each width is a parameter; a share of the elements passes
    unquantized."""

    def __init__(self, frozen: ActivationQuantizer, masks: MaskBank | None) -> None:
        super().__init__(frozen.widths, frozen.owner, frozen.pin)
        self._frozen = [frozen]
        self.masks = masks
        self.log_step = nn.ParameterDict(
            {str(b): nn.Parameter(s.log()) for b, s in zip(frozen.widths, frozen.steps, strict=True)}
        )
        self.now: dict[int, Tensor] = {}  # step sizes, while `quant.together` has them at hand
        self._range = {bits: self._range_of(row) for row, bits in enumerate(frozen.widths)}

    def _range_of(self, row: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """-z and top - z, and the codes' levels less z where there is a table, of a row of the frozen quantizer: whole
        numbers in float32, made once."""
        zero = self.frozen.zero_points[row]
        if self.frozen.tables is None:
            return -zero, 2 ** self.widths[row] - 1 - zero, None
        return -zero, 2**grid.TABLE_BITS - 1 - zero, self.frozen.tables[row].float() - zero

    @property
    def frozen(self) -> ActivationQuantizer:
        return self._frozen[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return x
        low, high, levels = self._range[self.bits]
        keep = self.masks.flat(x.numel()) if self.masks is not None and self.training else None
        step = self.now[self.bits] if self.bits in self.now else self.log_step[str(self.bits)].exp()
        result: Tensor = _QuantDrop.apply(x, step, low, high, keep, levels)  # type: ignore[no-untyped-call]
        return result

    @torch.no_grad()
    def committed(self) -> ActivationQuantizer:
        if not any(log_step.requires_grad for log_step in self.log_step.values()):
            self.frozen.select(self.bits)
            return self.frozen
        tables = self.frozen.tables
        quantizer = ActivationQuantizer(self.widths, self.owner, self.pin, table=tables is not None)
        quantizer.steps = torch.stack([self.log_step[str(bits)].exp() for bits in self.widths])
        quantizer.zero_points = self.frozen.zero_points.clone()
        quantizer.tables = None if tables is None else tables.clone()
        quantizer.select(self.bits)
        return quantizer
