"""Bias correction: what rounding adds to a layer's mean output, E[(W^ - W)x], is taken off its bias, width by width.

Source: Nagel et al. 2019 (data-free quantization), §4.2, with the mean input measured on the calibration images. x is
the float network's: a mean behind quantized layers instead would hold each layer to account for those before it, at
one width's activations, and harms (PTMQ §9.4).

What is ours: the correction is kept exact while a block is fitted, too (`means_kept`), as part of the layer's bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ptmq_lightning.reconstruction.store import Kept
from ptmq_lightning.runtime.hooks import watched_inputs
from ptmq_lightning.runtime.model import select, weights_of


@torch.no_grad()
def correct_biases(block: nn.Module, x: Kept, batch: int) -> None:
    """Give every layer of a committed block a bias per weight width; x: the block's float inputs (N, ...)."""
    means = mean_inputs(block, x, batch)
    for name, weight in weights_of(block):
        layer: Any = block.get_submodule(name)
        bias = torch.zeros_like(weight.latent_step) if layer.bias is None else layer.bias
        exact = weight.at(None)
        layer.biases = torch.stack([bias - _added(layer, means[name], weight.at(b) - exact) for b in weight.widths])


@contextmanager
def means_kept(block: nn.Module, means: Mapping[str, Tensor]) -> Iterator[None]:
    """Context of a fit in which every layer's mean output is the float network's, whatever its rounding is by then, as
    it will be once `correct_biases` has run on what is committed.

    Without it the soft rounding learns the mean besides all else, and badly where a channel has few weights (a
    depthwise convolution). A correction before the fit would be worse: it is one of nearest rounding's error, which the
    soft start, where W^ = W, does not have. Gradients pass through the correction: a rounding is not changed to mend a
    mean that is mended anyway. Layers that have biases of their own from an earlier pass are left alone.

    Args:
        means: of the layers' float inputs, by `mean_inputs`.
    """
    layers = [layer for name, _ in weights_of(block) if (layer := _keep_mean(block.get_submodule(name), means[name]))]
    try:
        yield
    finally:
        for layer in layers:
            del layer.compute  # the class's own again


def _keep_mean(layer: Any, mean: Tensor) -> Any:
    """Let a layer compute with the bias b + <m, W> - <m, W^> instead of b, m the mean output's derivative by the weight
    (O, ...): it is linear in it. The layer; None where it has biases of its own and stays as it is."""
    if layer.biases is not None:
        return None
    weight, plain = layer.weight, layer.compute
    exact = weight.at(None)
    m = _derivative(layer, mean, exact)
    kept = (exact * m).flatten(1).sum(1)
    if layer.bias is not None:
        kept += layer.bias

    def compute(x: Tensor, found: Tensor, bias: Tensor | None) -> Tensor:
        bias = bias if weight.bits is None else kept - (found * m).flatten(1).sum(1)
        output: Tensor = plain(x, found, bias)
        return output

    layer.compute = compute
    return layer


def _derivative(layer: Any, mean: Tensor, weight: Tensor) -> Tensor:
    """Of the layer's mean output by its weight (O, ...), in which it is linear; mean (1, ...): of its input."""
    weight = weight.detach().requires_grad_()
    with torch.enable_grad():
        _added(layer, mean, weight).sum().backward()
    assert weight.grad is not None
    return weight.grad


def _added(layer: Any, mean: Tensor, difference: Tensor) -> Tensor:
    """What a change of the weight (O, ...) adds to the layer's mean output, (O,); mean (1, ...): of its input."""
    added: Tensor = layer.compute(mean, difference, None)  # (1, O, H, W) or (1, ..., O)
    return added.movedim(layer.channel, -1).flatten(0, -2).mean(0)


@torch.no_grad()
def mean_inputs(block: nn.Module, x: Kept, batch: int) -> dict[str, Tensor]:
    """Mean over images of every layer's float input, (1, ...) by layer name: a layer's output is linear in it."""
    sums: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> None:
        total = x.sum(0, keepdim=True)
        sums[name] = sums[name] + total if name in sums else total

    select(block, None)
    with watched_inputs({name: block.get_submodule(name) for name, _ in weights_of(block)}, add):
        for first in range(0, len(x), batch):
            block(x[first : first + batch])
    return {name: total / len(x) for name, total in sums.items()}
