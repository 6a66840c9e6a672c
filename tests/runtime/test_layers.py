"""A quantized layer computes what its twin of torch.nn computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ptmq_lightning.runtime.layers import QuantConvTranspose2d, swap_channels, twin_of

NEAR = 1e-5  # float32 sums in another order; values are of order one
TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "stride and output padding": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "groups": {"kernel_size": (2, 3), "stride": (2, 1), "groups": 2},
    "dilation": {"kernel_size": 2, "dilation": (3, 2), "padding": (0, 1), "bias": False},
    "depthwise": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 4},
}


@torch.no_grad()
@pytest.mark.parametrize("options", TRANSPOSED.values(), ids=TRANSPOSED)
def test_a_transposed_convolution_computes_what_torch_computes(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.ConvTranspose2d(4, 8, **options), torch.randn(2, 4, 5, 6)
    twin = twin_of(layer)
    weight = twin.weight_of(layer)
    quantized = twin.of(layer, nn.Identity())
    assert isinstance(quantized, QuantConvTranspose2d) and len(weight) == 8  # output channels first
    assert torch.allclose(quantized.compute(x, weight, layer.bias), layer(x), rtol=NEAR, atol=NEAR)


def test_swapping_the_channels_twice_gives_the_weight_back() -> None:
    weight = torch.randn(6, 4, 3, 2)
    assert swap_channels(weight, 3).shape == (12, 2, 3, 2)
    assert torch.equal(swap_channels(swap_channels(weight, 3), 3), weight)
