"""The calibration cache: at the input of the block in turn, float features and those of the quantized blocks before it
(PTMQ §1.9). Where they are kept and how large they are: `reconstruction.store`, `reconstruction.cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.reconstruction.store import MEMORY, Kept, Store
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layout import dense
from ptmq_lightning.runtime.model import LayerInfo, select
from ptmq_lightning.runtime.spec import BitWidth

Result = TypeVar("Result", bound=Kept)


@dataclass
class Features:
    """fp: (N, ...); streams: key -> (N, ...), all the same tensor as fp before the first block."""

    fp: Kept
    streams: dict[Hashable, Kept]


class FeatureBatch:
    """The images of one iteration: fp (B, ...), target (B, ...), weight of the target's errors (B or 1, ...) or
    None, and by key the streams, gathered when asked for."""

    def __init__(self, features: Features, target: Kept, chosen: Tensor, weight: Tensor | None = None) -> None:
        self.fp, self.target = features.fp[chosen], target[chosen]
        self.weight = weight if weight is None or len(weight) == 1 else weight[chosen]
        self._streams, self._chosen = features.streams, chosen

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._streams[key][self._chosen]

    def at(self, pair: BitWidth) -> Tensor:
        """What a width's own quantized network gave, (B, ...); float features where the mixer keeps none of them."""
        return self[pair] if pair in self._streams else self.fp


class FeatureDataset(Dataset[FeatureBatch]):
    """Indexed by a whole batch of image numbers."""

    def __init__(self, features: Features, target: Kept, weight: Tensor | None = None) -> None:
        self.features, self.target, self.weight = features, target, weight

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, chosen: Tensor) -> FeatureBatch:
        return FeatureBatch(self.features, self.target, chosen, self.weight)


class ImageSampler(Sampler[Tensor]):
    """`iters` batches of image numbers drawn without replacement within a batch, from a generator of its own."""

    def __init__(self, count: int, batch: int, iters: int, seed: int, device: torch.device) -> None:
        self.count, self.batch, self.iters, self.seed, self.device = count, min(batch, count), iters, seed, device

    def __len__(self) -> int:
        return self.iters

    def __iter__(self) -> Iterator[Tensor]:
        """Each of several processes has its share of every batch: their mean gradient is the whole batch's."""
        generator = torch.Generator().manual_seed(self.seed)
        rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if self.batch % processes:
            raise ConfigError(
                f"recon.batch={self.batch} does not divide among {processes} processes; set recon.batch to a multiple "
                "of trainer.devices"
            )
        for _ in range(self.iters):
            yield torch.randperm(self.count, generator=generator)[rank : self.batch : processes].to(self.device)


def loader(
    features: Features,
    target: Kept,
    *,
    batch: int,
    iters: int,
    seed: int,
    weight: Tensor | None = None,
    seen: int | None = None,
) -> DataLoader[FeatureBatch]:
    """The iterations of one block's fit, in this process, on the features' device, over the first images; seen: how
    many of them, None: all."""
    sampler = ImageSampler(len(target) if seen is None else seen, batch, iters, seed, target.device)
    return DataLoader(FeatureDataset(features, target, weight), sampler=sampler, batch_size=None, num_workers=0)


def map_batches(function: Callable[[Tensor], Tensor], x: Kept, batch: int) -> Tensor:
    """function over x (N, ...) in batches, into one tensor (N, ...)."""
    return _mapped(function, x, batch, MEMORY.empty)


def run_float(block: nn.Module, x: Kept, batch: int, store: Store = MEMORY) -> Kept:
    """The block of the float network on x (N, ...)."""
    select(block, None)
    return _mapped(block, x, batch, store.empty)


@torch.no_grad()
def _mapped(
    function: Callable[[Tensor], Tensor], x: Kept, batch: int, empty: Callable[[int, Tensor], Result]
) -> Result:
    result: Result | None = None
    for first in range(0, len(x), batch):
        images = slice(first, first + batch)
        part = function(dense(x[images]))  # a stream's rows may be wider than its features
        if result is None:
            result = empty(len(x), part)
        result[images] = part
    assert result is not None
    return result


@torch.no_grad()
def advance(
    block: nn.Module,
    layers: Mapping[str, LayerInfo],
    features: Features,
    target: Kept,
    recipe: Recipe,
    generator: torch.Generator,
    streams: dict[Hashable, Kept],
) -> Features:
    """Features behind a finished block, or behind a part of one.

    Args:
        layers: the block's chosen of the layer table.
        features: at its input.
        target: its float output (N, ...), the next float feature.
        recipe: of the pass: which streams there are, and whether they are of quantized weights alone.
        generator: of the mixer's draws.
        streams: are filled, (N, ...) each; an image's may lie where its streams at the input do.
    """
    mixer, groups, batch = recipe.mixer, recipe.groups, recipe.schedule.batch

    def run(x: Tensor, width: BitWidth) -> Tensor:
        widths = {name: layer.width(width) for name, layer in layers.items()}
        select(block, widths, activations=recipe.quantize_inputs)
        output: Tensor = block(x)
        return output

    for first in range(0, len(target), batch):
        images = slice(first, first + batch)
        own = {key: dense(stream[images]) for key, stream in features.streams.items()}
        for key, value in mixer.propagate(own, groups, run, generator).items():
            streams[key][images] = value
    select(block, None)
    return Features(target, streams)
