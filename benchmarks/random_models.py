"""Multi-bit models of 2 to 8 bits on random weights, made in seconds: for sizes and times, which the values do not
change."""

from __future__ import annotations

import copy
from unittest import mock

import torch
from torch import Tensor, nn

from ptmq_lightning.models import blocks, fold, graph, zoo
from ptmq_lightning.quant import insert
from ptmq_lightning.quant.steps import Grid, StepSize
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.model import MultiBitModel, quantizers_of, weights_of
from ptmq_lightning.runtime.spec import BitWidth

WIDTHS = tuple(range(2, 9))
PAIRS = tuple(BitWidth(b, b) for b in WIDTHS)
ONE_PLANE = dict.fromkeys(WIDTHS, 0)
THREE_PLANES = {2: 0, 3: 1} | dict.fromkeys(range(4, 9), 2)


def random_model(name: str, *, free: tuple[int, ...] = (), plane_of: dict[int, int] = ONE_PLANE) -> MultiBitModel:
    """A network of the zoo at 224 px with random weights and rounding; the steps of `free` widths are not
    tied. plane_of: width -> plane of random bits; a width without one is rounded to nearest."""
    return with_float(name, free=free, plane_of=plane_of)[0]


def random_network(name: str) -> nn.Module:
    """A float network of the zoo with random weights."""
    torch.manual_seed(0)
    module = zoo.build(name, pretrained=False).module
    for norm in module.modules():  # a norm that begins at zero leaves a convolution without a value
        if isinstance(norm, nn.BatchNorm2d) and not norm.weight.any():
            nn.init.ones_(norm.weight)
    return module


def with_float(
    name: str, *, free: tuple[int, ...] = (), plane_of: dict[int, int] = ONE_PLANE, gelu: str = "uniform"
) -> tuple[MultiBitModel, nn.Module]:
    """The model, and the folded float network it was made of, as a chain of the same blocks. gelu: as in Placement."""

    def grids(weight: Tensor, widths: tuple[int, ...], _: StepSize) -> Grid:
        """The largest weight at the end of the range, and 0.9 of that where a width is free; no search."""
        finest = weight.abs().flatten(1).amax(dim=1).clamp_min(grid.EPS) / 127
        steps = torch.stack([finest * 2.0 ** (8 - b) * (0.9 if b in free else 1.0) for b in widths])
        return Grid(steps, torch.zeros(steps.shape, dtype=torch.int8))

    gm = graph.trace(random_network(name), (3, 224, 224))
    fold.fold(gm)
    chain = blocks.cut(gm, torch.randn(2, 3, 224, 224), name=name)
    network = nn.Sequential(*[copy.deepcopy(block.module) for block in chain]).requires_grad_(False)
    with mock.patch.object(insert, "weight_grids", grids):
        model = insert.insert(chain, PAIRS, insert.Placement(gelu=gelu), StepSize("nested"))
    for block in model.blocks:
        for _, weight in weights_of(block):
            rows = sorted({plane_of[b] for b in weight.widths if b in plane_of})
            own = {b: rows.index(plane_of[b]) for b in weight.widths if b in plane_of}
            planes = torch.randint(2, (len(rows), *weight.latent.shape), dtype=torch.uint8)
            weight.set_rounding("planes", planes, own)
        for _, quantizer in quantizers_of(block):
            quantizer.steps = torch.tensor([4.0 / 2**b for b in quantizer.widths])
            quantizer.zero_points = torch.tensor([2.0 ** (b - 1) for b in quantizer.widths])
            if quantizer.tables is not None:
                quantizer.tables = torch.arange(256, dtype=torch.uint8).expand(len(quantizer.widths), -1).clone()
    model.info = ModelInfo(name, "random weights")
    return model.eval().requires_grad_(False), network.eval()
