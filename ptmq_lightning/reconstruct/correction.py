"""Bias correction: what rounding adds to a layer's mean output, E[(W^ - W)x], is taken off its bias, width by width.

Source: Nagel et al. 2019 (data-free quantization), §4.2, with the mean input measured on the calibration images. x is
the float network's: a mean behind quantized layers instead would hold each layer to account for those before it, at
one width's activations, and harms (PTMQ §9.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.runtime.hooks import watched_inputs
from ptmq_lightning.runtime.model import select, weights_of


@torch.no_grad()
def correct_biases(block: nn.Module, x: Tensor, batch: int) -> None:
    """Give every layer of a committed block a bias per weight width; x: the block's float inputs (N, ...)."""
    means = mean_inputs(block, x, batch)
    for name, weight in weights_of(block):
        layer: Any = block.get_submodule(name)
        bias = torch.zeros_like(weight.latent_step) if layer.bias is None else layer.bias
        exact = weight.at(None)
        biases = []
        for bits in weight.widths:
            added = layer.compute(means[name], weight.at(bits) - exact, None)  # (1, O, H, W) or (1, ..., O)
            biases.append(bias - added.movedim(layer.channel, -1).flatten(0, -2).mean(0))
        layer.biases = torch.stack(biases)


def mean_inputs(block: nn.Module, x: Tensor, batch: int) -> dict[str, Tensor]:
    """Mean over images of every layer's float input, (1, ...) by layer name: a layer's output is linear in it."""
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        total = x.sum(0, keepdim=True)
        sums[name] = sums[name] + total if name in sums else total

    select(block, None)
    with watched_inputs({name: block.get_submodule(name) for name, _ in weights_of(block)}, add):
        for part in x.split(batch):
            block(part)
    return {name: total / len(x) for name, total in sums.items()}
