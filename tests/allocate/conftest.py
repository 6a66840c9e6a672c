"""A stand-in for the multi-bit model: three free layers, a pinned stem and a matmul."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

FAULT = {"stem": 0.0, "a": 1.0, "b": 0.1, "c": 3.0}


class Faults(nn.Module):
    """One block: x (B, C) plus, for each layer at weight bits w, its fault * 2^-w on the first class."""

    def __init__(self, model: MultiBitModel, index: int) -> None:
        super().__init__()
        self.model, self.index = [model], index  # in a list: the model holds the block, not the block the model

    def forward(self, x: Tensor) -> Tensor:
        model = self.model[0]
        for name, pair in model.active.items() if model.active is not None else ():
            if model.layers[name].block == self.index and name in FAULT:
                x = x + FAULT[name] * 2.0**-pair.w * torch.eye(x.shape[1])[0]
        return x


@pytest.fixture
def model() -> MultiBitModel:
    """Three blocks."""
    layers = (
        LayerInfo("stem", 0, "conv", (4, 4), pin_w=8, pin_a=8),
        LayerInfo("a", 1, "linear", (10, 10)),
        LayerInfo("scores", 1, "matmul"),
        LayerInfo("b", 1, "linear", (10, 30)),
        LayerInfo("c", 2, "linear", (10, 60)),
    )
    pairs = [BitWidth(w, w) for w in (2, 3, 4, 6, 8)]
    model = MultiBitModel([], ["stem", "body", "head"], {layer.name: layer for layer in layers}, pairs)
    model.blocks.extend(Faults(model, index) for index in range(3))
    return model
