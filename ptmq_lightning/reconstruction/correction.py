"""Bias correction: what rounding adds to a layer's mean output, E[(W^ - W)x], is taken off its bias, width by width.

Source: Nagel et al. 2019 (data-free quantization), §4.2, with the mean input measured on the calibration images. x is
the float network's: a mean behind quantized layers instead would hold each layer to account for those before it, at
one width's activations, and harms (PTMQ §9.4).

What is ours: the correction is kept exact while a block is fitted, too (`means_kept`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    handles = []
    for name, weight in weights_of(block):
        layer: Any = block.get_submodule(name)
        if layer.biases is None:
            used: list[Tensor] = []  # the weight of this run, so that it is made once
            handles.append(weight.register_forward_hook(_noted(used)))
            handles.append(layer.register_forward_hook(_kept(means[name], used)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _noted(used: list[Tensor]) -> Callable[..., None]:
    def hook(_weight: Any, _inputs: Any, output: Tensor) -> None:
        used[:] = [output]

    return hook


def _kept(mean: Tensor, used: list[Tensor]) -> Callable[..., Tensor | None]:
    def hook(layer: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        if layer.weight.bits is None:
            return None
        added = _added(layer, mean, used.pop() - layer.weight.at(None))
        return output - added.reshape(-1, *[1] * (output.dim() - 1 - layer.channel % output.dim()))

    return hook


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
