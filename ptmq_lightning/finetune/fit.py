"""The one loop of the baselines that train: labeled images, several backward passes, one step of one optimizer.

A baseline is a `FineTuning` that yields its losses one by one: each graph is gone before the next is built, as in
Any-Precision's own loop. AdamW and a cosine to 0 for every one [our choice: their SGD rates belong to training from
scratch on whole data sets].
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.layout import trains_channels_last
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.registry import Registry

Batch = tuple[Tensor, Tensor]


BASELINES: Registry[type[FineTuning]] = Registry("finetune")


def choices() -> tuple[str, ...]:
    """What finetune.name may be."""
    return ("none", *BASELINES.names())


@dataclass(frozen=True)
class FinetuneKeys:
    """How the baselines train with labels."""

    name: str = key("none", "training with labels", choices=choices)
    epochs: int = key(10, "passes over the labeled images", least=1)
    batch: int = key(32, "images per iteration", least=1)
    lr: float = key(1e-3, "rate of weights, biases and norms", least=0)
    lr_step_size: float = key(
        1e-3, "rate of the logarithms of step sizes (multiquant; first and last layer of any_precision)", least=0
    )
    weight_decay: float = key(1e-4, "of the weights")
    crop: int = key(0, "random shifts of up to so many pixels")
    flip: bool = key(False, "random mirror images")
    kurtosis_weight: float = key(1.0, "robustquant: weight of the pull to a uniform distribution")
    statistics_images: int = key(
        512, "multiquant: calibration images that the norms' statistics are estimated on", least=1
    )
    log_every: int = key(20, "iterations from one line of metrics to the next", least=1)


@dataclass(frozen=True)
class Whole:
    """Stands for a block's `Place` where the whole network is trained."""

    index: int = 0
    count: int = 1
    name: str = "network"


class Batches(Dataset[Batch]):
    """The batches of all epochs in a row: item t is iteration t's images (B, C, H, W) and labels (B,), the same
    whenever it is asked for. An epoch drops what does not fill a batch."""

    def __init__(self, images: Tensor, labels: Tensor, keys: FinetuneKeys, seed: int = 0) -> None:
        if len(labels) < keys.batch:
            raise DataError(
                f"{len(labels)} labeled images do not fill a batch of {keys.batch}; set data.calibration_images "
                "higher or finetune.batch lower"
            )
        self.images, self.labels, self.keys, self.seed = images, labels, keys, seed
        self.per_epoch = len(labels) // keys.batch
        self.channels_last = True  # `fit` asks the network

    def __len__(self) -> int:
        return self.keys.epochs * self.per_epoch

    def __getitem__(self, index: int) -> Batch:
        keys = self.keys
        epoch, place = divmod(index, self.per_epoch)
        order = torch.randperm(len(self.labels), generator=_generator(self.seed, -1 - epoch))
        chosen = order[place * keys.batch : (place + 1) * keys.batch].to(self.labels.device)
        images = augment(self.images[chosen], keys.crop, keys.flip, _generator(self.seed, index))
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return images, self.labels[chosen]


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def augment(images: Tensor, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) shifted by up to ``crop`` pixels (edges repeated) and mirrored, each by its own draw."""
    if flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device).reshape(-1, 1, 1, 1), images.flip(-1), images)
    if crop:
        height, width = images.shape[-2:]
        padded = nn.functional.pad(images, (crop,) * 4, mode="replicate")
        corners = torch.randint(2 * crop + 1, (len(images), 2), generator=generator).tolist()
        shifted = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)]
        images = torch.stack(shifted)
    return images


class FineTuning(L.LightningModule, ABC):
    """A baseline's fit. Variants join by `@BASELINES.register(name)`.

    Args:
        network: images (B, C, H, W) -> logits (B, classes).
        keys: how it is trained.
        iters: of the whole fit.
        seed: of the drawn widths.
    """

    before_folding: ClassVar[bool] = False  # True: it trains the float network, which is then quantized as any other

    def __init__(self, network: nn.Module, keys: FinetuneKeys, iters: int, seed: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.keys, self.iters = network, keys, iters
        self.draws = torch.Generator().manual_seed(seed)
        self.place, self.latest = Whole(), dict[str, float]()

    @classmethod
    def trainable(cls, model: MultiBitModel) -> nn.Module:
        """The calibrated model with norms, with what the baseline trains in it as parameters; its modules are replaced
        in place. Not called where `before_folding` is true.

        Raises:
            ModelError: the baseline cannot train this network.
        """
        raise NotImplementedError(f"{cls.__name__} must say what it trains in a quantized model")

    def finish(self, images: Tensor) -> None:
        """What is estimated once the training is over; images (N, C, H, W)."""

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, loss) of each pass of an iteration; the caller goes backward before it asks for the next."""

    def training_step(self, batch: Batch, index: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        own = {}
        for name, loss in self.losses(*batch):
            self.manual_backward(loss)
            own[name] = loss.detach()
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        if index % self.keys.log_every == 0 or index == self.iters - 1:
            self.report(index, own)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, everything on a cosine to 0; weights decay, norms, biases and step sizes do not."""
        s, named = self.keys, [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        step_sizes = [p for n, p in named if ".log_step." in n]
        weights = [p for n, p in named if ".log_step." not in n and not _is_vector(n, p)]
        vectors = [p for n, p in named if ".log_step." not in n and _is_vector(n, p)]
        groups = [
            {"params": weights, "lr": s.lr, "weight_decay": s.weight_decay},
            {"params": vectors, "lr": s.lr, "weight_decay": 0.0},
            {"params": step_sizes, "lr": s.lr_step_size, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / self.iters))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def report(self, index: int, own: dict[str, Tensor]) -> None:
        """Losses of this iteration to the loggers, in a reconstruction's terms."""
        self.latest = {f"loss/{name}": float(loss) for name, loss in own.items()}
        where = {"iter": index, "block": self.place.index, "block_name": self.place.name}
        for logger in self.loggers:
            logger.log_metrics({**self.latest, **where}, step=index)  # type: ignore[dict-item]


def _is_vector(name: str, parameter: Tensor) -> bool:
    """A norm's or a bias's; the sets of a SwitchNorm are stacked to a matrix."""
    return parameter.dim() < 2 or name.endswith((".scale", ".shift"))


def fit(module: FineTuning, batches: Batches, trainer: L.Trainer) -> float:
    """Train ``module.network`` in place and leave it in eval mode; seconds."""
    started = time.perf_counter()
    module.train()
    batches.channels_last = trains_channels_last(module.network)
    trainer.fit(module, DataLoader(batches, batch_size=None))
    module.to(batches.images.device)  # the Trainer leaves a network on the CPU
    module.eval()
    return time.perf_counter() - started


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images of -sum target * log softmax(logits); logits and target (B, classes)."""
    return nn.functional.cross_entropy(logits, target)
