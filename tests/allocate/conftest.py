"""A stand-in for the multi-bit model: three free layers, a pinned stem and a matmul."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

FAULT = {"stem": 0.0, "a": 1.0, "b": 0.1, "c": 3.0}


class Fault(nn.Module):
    """A layer: x (B, C) plus, at weight bits w, its fault * 2^-w on the first class."""

    def __init__(self, model: MultiBitModel, name: str) -> None:
        super().__init__()
        self.model, self.name = [model], name  # in a list: the model holds the layer, not the layer the model

    def forward(self, x: Tensor) -> Tensor:
        active = self.model[0].active
        if active is None:
            return x
        width = dict(active.items())[self.name].w
        return x + FAULT[self.name] * 2.0**-width * torch.eye(x.shape[1])[0]


def block(model: MultiBitModel, index: int) -> fx.GraphModule:
    """Its layers one after the other."""
    faults = {name: Fault(model, name) for name, info in model.layers.items() if info.block == index and name in FAULT}
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name in faults:
        x = graph.call_module(name, (x,))
    graph.output(x)
    return fx.GraphModule(faults, graph)


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
    model.blocks.extend(block(model, index) for index in range(3))
    return model
