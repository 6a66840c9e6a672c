"""The smallest multi-bit model there is: one linear layer of six weights, at 4 and 8 bits, its steps tied."""

from __future__ import annotations

import torch
from torch import fx

from ptmq_lightning.runtime.layers import ActivationQuantizer, QuantLinear
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight

LATENT = [[1, -1, 1023], [-1023, 512, 0]]
ROUNDING = [[1, 0, 1], [0, 1, 1]]


def tiny_model() -> MultiBitModel:
    """x (B, 3) -> (B, 2)."""
    step, widths = torch.tensor([2.0**-10, 2.0**-9]), (4, 8)
    weight = MultiBitWeight(torch.tensor(LATENT, dtype=torch.int16), step, widths, torch.stack([128 * step, 8 * step]))
    weight.set_rounding("planes", torch.tensor([ROUNDING], dtype=torch.uint8), {4: 0, 8: 0})
    quantizer = ActivationQuantizer(widths, "fc")
    quantizer.steps, quantizer.zero_points = torch.tensor([0.5, 0.03125]), torch.tensor([8.0, 128.0])
    graph = fx.Graph()
    graph.output(graph.call_module("fc", (graph.call_module("quantizers.fc", (graph.placeholder("x"),)),)))
    layer = QuantLinear(weight, torch.tensor([0.25, -0.5]))
    block = fx.GraphModule({"quantizers.fc": quantizer, "fc": layer}, graph)
    pairs = [BitWidth(4, 4), BitWidth(8, 8)]
    return MultiBitModel([block], ["all"], {"fc": LayerInfo("fc", 0, "linear", (2, 3))}, pairs).eval()
