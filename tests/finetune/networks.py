"""A small network with a BatchNorm behind every convolution, as the methods that train take it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.models.digits import DigitsResNet
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth

PAIRS = (BitWidth(2, 4), BitWidth(4, 4), BitWidth(8, 8))


def network(seed: int = 0) -> nn.Module:
    """Random weights, and norms whose scales, shifts and statistics are not those of a new network."""
    torch.manual_seed(seed)
    module = DigitsResNet(widths=(4, 4, 4))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.2)
            nn.init.normal_(part.running_mean, std=0.2)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def images(count: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def labels(count: int = 16) -> Tensor:
    return torch.arange(count) % 10


def inserted(
    module: nn.Module | None = None, *, norms: bool = True, pairs: tuple[BitWidth, ...] = PAIRS
) -> MultiBitModel:
    """Calibrated; norms: kept, else folded."""
    gm = graph.trace(module or network(), (3, 16, 16))
    if not norms:
        fold.fold(gm)
    model = insert(blocks.cut(gm, images(2)), pairs, Placement(), StepSize())
    calibrate(model, images())
    return model
