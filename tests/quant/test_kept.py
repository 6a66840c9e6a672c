"""Step sizes on fixed integers learn from a layer's output what they would from its weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ptmq_lightning.quant.kept import KeptCodes
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.layers import QuantConv2d, QuantConvTranspose2d, QuantLinear
from ptmq_lightning.runtime.weights import MultiBitWeight

LAYERS = {
    "linear": (QuantLinear, nn.Linear(5, 4), (3, 7, 5)),
    "convolution": (QuantConv2d, nn.Conv2d(6, 4, 3, stride=2, groups=2), (2, 6, 7, 7)),
    "depthwise": (QuantConv2d, nn.Conv2d(6, 6, 3, groups=6, bias=False), (2, 6, 5, 5)),
    "transposed": (QuantConvTranspose2d, nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 4, 4)),
}


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_the_gradient_is_that_of_the_weight(name: str, bits: int) -> None:
    torch.manual_seed(0)
    kind, plain, shape = LAYERS[name]
    made: Any = kind
    latent, step = grid.latent(made.weight_of(plain))
    steps = torch.stack([step * 2.0**6, step])
    zeros = torch.tensor([[1], [0]], dtype=torch.int8).expand(2, len(step)).contiguous()
    kept = KeptCodes(MultiBitWeight(latent, step, (2, 8), steps, zero_points=zeros))
    kept.select(bits)
    layer = made.of(plain, kept)
    with torch.no_grad():
        kept.log_gain[str(bits)].normal_(std=0.1)
    x, bias = torch.randn(shape, requires_grad=True), torch.randn(len(step), requires_grad=True)
    learned = {"step": kept.log_gain[str(bits)], "bias": bias, "x": x}

    told = kept.tell(layer.compute(x, kept(), bias.detach()), bias, layer.channel)
    factor = torch.randn_like(told)
    found = torch.autograd.grad((told * factor).sum(), list(learned.values()))

    gain = kept.log_gain[str(bits)].exp() / kept.log_gain[str(bits)].exp().detach()
    whole = layer.compute(x, kept() * grid.per_channel(gain, kept()), bias)
    wanted = torch.autograd.grad((whole * factor).sum(), list(learned.values()))
    assert torch.equal(told, whole)
    for what, one, other in zip(learned, found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), what
