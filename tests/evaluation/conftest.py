"""A stand-in for the multi-bit model whose every figure can be worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth


class StandIn(MultiBitModel):
    """One linear layer; at width w the logits' sign-alternating error is 2^-w."""

    def __init__(self, inputs: int = 12, classes: int = 6) -> None:
        torch.manual_seed(0)
        block = nn.ModuleDict({"fc": nn.Linear(inputs, classes)})
        layers = {"fc": LayerInfo("fc", 0, "linear", (classes, inputs))}
        super().__init__([block], ["head"], layers, [BitWidth(8, 8)])
        self.batches: list[int | None] = []

    def forward(self, x: Tensor) -> Tensor:
        bits = None if self.active is None else self.active["fc"].w
        self.batches.append(bits)
        logits = self.blocks[0]["fc"](x.flatten(1))
        if bits is None:
            return logits
        return logits + 2.0**-bits * torch.tensor([1.0, -1.0]).repeat(logits.shape[1] // 2)


@pytest.fixture
def model() -> StandIn:
    return StandIn()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    """22 images in three batches, the last one short."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(22, 3, 2, 2, generator=generator)
    labels = torch.randint(6, (22,), generator=generator)
    return list(zip(images.split(8), labels.split(8), strict=True))
