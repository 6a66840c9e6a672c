"""Robust quantization: one model to rule them all (Shkolnik et al., NeurIPS 2020): KURE.

The float network is fine-tuned with labels and a pull of every layer's kurtosis to the uniform distribution's, 1.8:
loss = cross entropy + lambda * mean over layers of (kurtosis(W_i) - 1.8)^2. Then it is quantized plainly, at any width;
a switch costs nothing but the new codes. lambda = 1 and the mean over layers as in moranshkolnik/RobustQuantization,
which quantizes by LAPQ afterwards where we search the step sizes as for every method (PTMQ §1.3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ptmq_lightning.finetune.fit import BASELINES, FinetuneKeys, FineTuning
from ptmq_lightning.runtime.layers import QUANTIZABLE

TARGET = 1.8


def kurtosis(weight: Tensor) -> Tensor:
    """Fourth standardized moment of all elements: 1.8 for a uniform distribution, 3 for a normal one."""
    centered = weight - weight.mean()
    return (centered / weight.std()).pow(4).mean()


@BASELINES.register("robustquant")
class RobustQuant(FineTuning):
    """The first and the last layer, which stay at 8 bits, are not pulled."""

    before_folding = True

    def __init__(self, network: nn.Module, keys: FinetuneKeys, iters: int, seed: int = 0) -> None:
        super().__init__(network, keys, iters, seed)
        layers: list[Any] = [module for module in network.modules() if isinstance(module, QUANTIZABLE)]
        self.pulled = [layer.weight for layer in layers[1:-1] if layer.weight.numel() > 1]

    def regularizer(self) -> Tensor:
        """mean over layers of (kurtosis - 1.8)^2."""
        return torch.stack([(kurtosis(weight) - TARGET).square() for weight in self.pulled]).mean()

    def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "float", cross_entropy(self.network(images), labels)
        yield "kurtosis", self.keys.kurtosis_weight * self.regularizer()
