"""Any-Precision deep neural networks (Yu et al., AAAI 2021; formulas of SHI-Labs/Any-Precision-DNNs).

One weight for all widths, quantized as in DoReFa; a BatchNorm set per width; knowledge flows from the wide to the
narrow width. Stored once at 8 bits. What we do otherwise [our choice]:
- It starts from the float network. DoReFa clips activations to [0, 1], which a network trained without it does not
  survive: here the clip of every tensor and width is the calibrated one, fixed; 2^a - 1 levels as there.
- A narrow code is rounded from the stored 8-bit code, round(c (2^b - 1) / 255), in training too: what is trained is
  what is stored. At 2 and 4 bits 255 is a multiple, and the levels are some of the 8-bit network's own.
- First and last layer at 8 bits with learned step sizes (there: float), shortcuts read the quantized tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ptmq_lightning.finetune.fit import BASELINES, FineTuning, soft_cross_entropy
from ptmq_lightning.finetune.layers import LsqWeight, SharedWeight, round_through
from ptmq_lightning.finetune.network import SharedModel, make_trainable, unnormed
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.switchable import SwitchableWeight
from ptmq_lightning.runtime.weights import MultiBitWeight

STORED = 2**8 - 1  # levels of the stored code, less one


class DorefaWeight(SharedWeight):
    """w = tanh(W) / (2 max|tanh W|) + 1/2;  W^ = (2 round((2^b - 1) w) / (2^b - 1) - 1) mean|W|."""

    def unit(self) -> Tensor:
        """w in [0, 1], (O, ...)."""
        squashed = torch.tanh(self.value)
        return squashed / (2 * squashed.abs().amax().clamp_min(torch.finfo(squashed.dtype).tiny)) + 0.5

    def at(self, bits: int | None) -> Tensor:
        unit, size = self.unit(), self.value.abs().mean().detach()
        if bits is not None:
            unit = _level(round_through(unit * STORED), bits)
        return (2 * unit - 1) * size

    @torch.no_grad()
    def committed(self) -> DorefaCode:
        code = torch.round(self.unit() * STORED).to(torch.uint8)
        return DorefaCode(code, self.value.abs().mean(), self.widths)


class DorefaCode(SwitchableWeight):
    """The stored weight: code uint8 (O, ...) at 8 bits, size = mean|W| (); any width is rounded from it."""

    def __init__(self, code: Tensor, size: Tensor, widths: tuple[int, ...]) -> None:
        super().__init__(widths)
        self.register_buffer("code", code)
        self.register_buffer("size", size)

    code: Tensor
    size: Tensor

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: of the stored code."""
        unit = self.code.float() / STORED if bits is None else _level(self.code.float(), bits)
        return (2 * unit - 1) * self.size

    def forward(self) -> Tensor:
        return self.at(self.bits)


def _level(code: Tensor, bits: int) -> Tensor:
    """The level in [0, 1] that a width gives a stored code 0..255."""
    top = 2**bits - 1
    level: Tensor = round_through(code / STORED * top) / top
    return level


@BASELINES.register("any_precision")
class AnyPrecision(FineTuning):
    """Hard labels at the widest pair; then each narrower one learns the softmax of the next wider one."""

    network: SharedModel

    @classmethod
    def trainable(cls, model: MultiBitModel) -> SharedModel:
        """Raises ModelError where a layer has no norm to undo DoReFa's scale."""
        if missing := unnormed(model):
            raise ModelError(
                "method=any_precision needs a BatchNorm behind every layer, because DoReFa changes the weights' scale; "
                f"{len(missing)} layers have none, first {missing[0]}. Choose a network with BatchNorms or another "
                "method."
            )
        return make_trainable(model, _weight, shared_norms=False, learn_step_sizes=False)

    def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        target: Tensor | None = None
        for pair in reversed(self.network.pairs):
            self.network.switch(pair)
            logits = self.network(images)
            yield str(pair), cross_entropy(logits, labels) if target is None else soft_cross_entropy(logits, target)
            target = logits.detach().softmax(dim=1)


def _weight(info: LayerInfo, frozen: MultiBitWeight) -> SharedWeight:
    return LsqWeight(frozen) if info.pin_w is not None else DorefaWeight(frozen)
