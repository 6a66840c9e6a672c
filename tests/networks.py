"""Small random networks, models made of them and what fits them, for tests."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.learned import LearnedWeight
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.reconstruction.losses import LossKeys
from ptmq_lightning.reconstruction.mixer import MIXERS, Mixer, MixerKeys
from ptmq_lightning.reconstruction.objective import Objective
from ptmq_lightning.reconstruction.recipe import Recipe, Schedule
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitGroups, BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight

GROUPS = BitGroups.of([[3, 4], [[5, 5], [6, 6]], [8]])
MADE: dict[str, tuple[MultiBitModel, Tensor]] = {}  # and the state that torch's generator was left in


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + x)


class Attention(nn.Module):
    """One pre-norm attention layer over the tokens of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return x + self.proj((q @ k.transpose(1, 2)).softmax(dim=-1) @ v)


class SmallNet(nn.Module):
    """Stem, two residual blocks, one attention layer, head: every kind of layer in a few thousand weights."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(Residual(channels), Residual(channels))
        self.blocks = nn.Sequential(Attention(channels))
        self.fc = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(torch.relu(self.bn1(self.conv1(x))))
        x = self.blocks(x.flatten(2).transpose(1, 2))
        return self.fc(x.mean(dim=1))


def small_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = SmallNet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def images(count: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def small_model(
    *,
    pairs: Iterable[BitWidth] = GROUPS.pairs,
    placement: Placement | None = None,
    step_size: StepSize | None = None,
    calibrated: bool = True,
) -> MultiBitModel:
    """SmallNet, quantized: a copy of its own for each call, made once for each configuration, as calibration searches
    for seconds. Torch's generator is in the same state after each."""
    placement, step_size = placement or Placement(), step_size or StepSize()
    pairs = tuple(pairs)
    key = repr((pairs, placement, step_size, calibrated))
    if key not in MADE:
        gm = graph.trace(small_network(), (3, 8, 8))
        fold.fold(gm)
        model = insert(blocks.cut(gm, images(2)), pairs, placement, step_size)
        if calibrated:
            calibrate(model, images())
        MADE[key] = model, torch.get_rng_state()
    model, state = MADE[key]
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def trainer() -> L.Trainer:
    """A Trainer for one block, without a trace."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def mixer(name: str = "case3", **keys: Any) -> Mixer:
    return MIXERS[name](MixerKeys(name, **keys))


def objective(name: str = "gd_figure", norm: str = "none", p: float = 2.0, **keys: Any) -> Objective:
    return Objective(LossKeys(name, norm=norm, **keys), p=p)


def trainable(frozen: MultiBitWeight, keys: RoundingKeys, *, learn_step_sizes: bool) -> LearnedWeight:
    """The trainable twin of a weight."""
    return ROUNDINGS[keys.name](frozen, keys, learn_step_sizes=learn_step_sizes)


RECIPE = Recipe(
    GROUPS,
    mixer("matched"),
    objective("gd_direct"),
    RoundingKeys("shared"),
    Schedule(iters=8, batch=8, log_every=4),
    learn_step_sizes=True,
)
