"""Bias correction: what rounding adds to a layer's mean output, E[(W^ - W)x], is taken off its bias, width by width.

Source: Nagel et al. 2019 (data-free quantization), §4.2, with the mean input measured on the calibration images. x is
the float network's: a mean over quantized prefixes instead would hold each layer to account for those before it, at
one width's activations, and harms (PTMQ §9.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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

    def add(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            part = inputs[0].sum(0, keepdim=True)
            sums[name] = sums[name] + part if name in sums else part

        return hook

    hooks = [block.get_submodule(name).register_forward_pre_hook(add(name)) for name, _ in weights_of(block)]
    select(block, None)
    try:
        for part in x.split(batch):
            block(part)
    finally:
        for handle in hooks:
            handle.remove()
    return {name: total / len(x) for name, total in sums.items()}
