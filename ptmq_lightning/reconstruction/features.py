"""The calibration cache: at the input of the block in turn, float features and those of the quantized blocks before it
(PTMQ §1.9).

Only the input and the target of one block are held at a time, so memory does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ptmq_lightning.reconstruction.mixer import Mixer
from ptmq_lightning.reconstruction.recipe import Recipe
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import LayerInfo, MultiBitModel, select
from ptmq_lightning.runtime.spec import BitGroups, BitWidth


@dataclass
class Features:
    """fp: (N, ...); streams: key -> (N, ...), all the same tensor as fp before the first block."""

    fp: Tensor
    streams: dict[Hashable, Tensor]


class FeatureBatch:
    """The images of one iteration: fp (B, ...), target (B, ...), weight of the target's errors (B or 1, ...) or
    None, and by key the streams, gathered when asked for."""

    def __init__(self, features: Features, target: Tensor, chosen: Tensor, weight: Tensor | None = None) -> None:
        self.fp, self.target = features.fp[chosen], target[chosen]
        self.weight = weight if weight is None or len(weight) == 1 else weight[chosen]
        self._streams, self._chosen = features.streams, chosen

    def __getitem__(self, key: Hashable) -> Tensor:
        return self._streams[key][self._chosen]


class FeatureDataset(Dataset[FeatureBatch]):
    """Indexed by a whole batch of image numbers."""

    def __init__(self, features: Features, target: Tensor, weight: Tensor | None = None) -> None:
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
    features: Features, target: Tensor, *, batch: int, iters: int, seed: int, weight: Tensor | None = None
) -> DataLoader[FeatureBatch]:
    """The iterations of one block's fit, in this process, on the features' device."""
    sampler = ImageSampler(len(target), batch, iters, seed, target.device)
    return DataLoader(FeatureDataset(features, target, weight), sampler=sampler, batch_size=None, num_workers=0)


@torch.no_grad()
def map_batches(function: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
    """function over x (N, ...) in batches, into one tensor (N, ...)."""
    result: Tensor | None = None
    for first in range(0, len(x), batch):
        part = function(x[first : first + batch])
        if result is None:
            result = x.new_empty((len(x), *part.shape[1:]))
        result[first : first + len(part)] = part
    assert result is not None
    return result


def run_float(block: nn.Module, x: Tensor, batch: int) -> Tensor:
    """The block of the float network on x (N, ...)."""
    select(block, None)
    return map_batches(block, x, batch)


@torch.no_grad()
def advance(
    block: nn.Module,
    layers: Mapping[str, LayerInfo],
    features: Features,
    target: Tensor,
    recipe: Recipe,
    generator: torch.Generator,
) -> Features:
    """Features behind a finished block, or behind a part of one.

    Args:
        layers: the block's chosen of the layer table.
        features: at its input.
        target: its float output (N, ...), the next float feature.
        recipe: of the pass: which streams there are, and whether they are of quantized weights alone.
        generator: of the mixer's draws.
    """
    mixer, groups, batch = recipe.mixer, recipe.groups, recipe.schedule.batch

    def run(x: Tensor, width: BitWidth) -> Tensor:
        widths = {name: layer.width(width) for name, layer in layers.items()}
        select(block, widths, activations=recipe.quantize_inputs)
        output: Tensor = block(x)
        return output

    streams = {key: target.new_empty(target.shape) for key in mixer.streams(groups)}
    for first in range(0, len(target), batch):
        images = slice(first, first + batch)
        own = {key: stream[images] for key, stream in features.streams.items()}
        for key, value in mixer.propagate(own, groups, run, generator).items():
            streams[key][images] = value
    select(block, None)
    return Features(target, streams)


@torch.no_grad()
def predict_bytes(model: MultiBitModel, images: Tensor, mixer: Mixer, groups: BitGroups) -> int:
    """Bytes of the feature cache at its largest: input and target float features, input and output streams."""
    x, streams, largest = images[:1], len(mixer.streams(groups)), 0
    before = x.numel()
    held = 1  # in front of the first block every stream is the images themselves
    for block in model.blocks:
        select(block, None)
        x = block(x)
        after = x.numel()
        largest = max(largest, before * held + after * (1 + streams))
        before, held = after, 1 + streams
    return largest * len(images) * images.element_size()
