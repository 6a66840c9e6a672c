"""The one loop of the methods that train: labeled images, several backward passes, one step of one optimizer.

A method is a `FineTuning` that yields its losses one by one: each graph is gone before the next is built, as in
Any-Precision's own loop. AdamW and a cosine to 0 for every method [our choice: their SGD rates belong to training from
scratch on whole data sets].
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ptmq_lightning.runtime.errors import DataError

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Settings:
    """lr: of weights, biases and norms; lr_step_size: of log steps. crop: random shifts of up to so many pixels, flip:
    random mirror images. seed: of order, shifts, mirrors and drawn widths."""

    epochs: int
    batch: int = 32
    lr: float = 1e-3
    lr_step_size: float = 1e-3
    weight_decay: float = 1e-4
    crop: int = 0
    flip: bool = False
    log_every: int = 20
    seed: int = 0


@dataclass(frozen=True)
class Whole:
    """Stands for a block's `Place` where the whole network is trained."""

    index: int = 0
    count: int = 1
    name: str = "network"


class Batches(Dataset[Batch]):
    """The batches of all epochs in a row: item t is step t's images (B, C, H, W) and labels (B,), the same whenever it
    is asked for. An epoch drops what does not fill a batch."""

    def __init__(self, images: Tensor, labels: Tensor, settings: Settings) -> None:
        if len(labels) < settings.batch:
            raise DataError(
                f"{len(labels)} labeled images do not fill a batch of {settings.batch}; set data.calibration_images "
                "higher or finetune.batch lower"
            )
        self.images, self.labels, self.settings = images, labels, settings
        self.per_epoch = len(labels) // settings.batch

    def __len__(self) -> int:
        return self.settings.epochs * self.per_epoch

    def __getitem__(self, step: int) -> Batch:
        s = self.settings
        epoch, place = divmod(step, self.per_epoch)
        order = torch.randperm(len(self.labels), generator=_generator(s.seed, -1 - epoch))
        chosen = order[place * s.batch : (place + 1) * s.batch].to(self.labels.device)
        return augment(self.images[chosen], s.crop, s.flip, _generator(s.seed, step)), self.labels[chosen]


def _generator(seed: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


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
    return images.contiguous(memory_format=torch.channels_last)


class FineTuning(L.LightningModule, ABC):
    """network: images (B, C, H, W) -> logits (B, classes). iters: of the whole fit."""

    def __init__(self, network: nn.Module, settings: Settings, iters: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network, self.settings, self.iters = network, settings, iters
        self.draws = torch.Generator().manual_seed(settings.seed)
        self.place, self.latest = Whole(), dict[str, float]()

    @abstractmethod
    def losses(self, images: Tensor, labels: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(name, loss) of each pass of a step; the caller goes backward through one before it asks for the next."""

    def training_step(self, batch: Batch, index: int) -> None:
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        own = {}
        for name, loss in self.losses(*batch):
            self.manual_backward(loss)
            own[name] = loss.detach()
        optimizer.step()  # type: ignore[union-attr]
        schedule.step()  # type: ignore[union-attr]
        if index % self.settings.log_every == 0 or index == self.iters - 1:
            self.report(index, own)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, everything on a cosine to 0; weights decay, norms, biases and steps do not."""
        s, named = self.settings, [(n, p) for n, p in self.network.named_parameters() if p.requires_grad]
        steps = [p for n, p in named if ".log_step." in n]
        weights = [p for n, p in named if ".log_step." not in n and not _is_vector(n, p)]
        vectors = [p for n, p in named if ".log_step." not in n and _is_vector(n, p)]
        groups = [
            {"params": weights, "lr": s.lr, "weight_decay": s.weight_decay},
            {"params": vectors, "lr": s.lr, "weight_decay": 0.0},
            {"params": steps, "lr": s.lr_step_size, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / self.iters))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def report(self, index: int, own: dict[str, Tensor]) -> None:
        """Losses of this step to the loggers, in a reconstruction's terms."""
        self.latest = {f"loss/{name}": float(loss) for name, loss in own.items()}
        where = {"recon/step": index, "block": self.place.index, "block_name": self.place.name}
        for logger in self.loggers:
            logger.log_metrics({**self.latest, **where}, step=index)  # type: ignore[dict-item]


def _is_vector(name: str, parameter: Tensor) -> bool:
    """A norm's or a bias's; the sets of a SwitchNorm are stacked to a matrix."""
    return parameter.dim() < 2 or name.endswith((".scale", ".shift"))


def fit(module: FineTuning, batches: Batches, trainer: L.Trainer) -> float:
    """Train ``module.network`` in place and leave it in eval mode; seconds."""
    started = time.perf_counter()
    module.train()
    trainer.fit(module, DataLoader(batches, batch_size=None))
    module.to(batches.images.device)  # the Trainer leaves a network on the CPU
    module.eval()
    return time.perf_counter() - started


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over images of -sum target * log softmax(logits); logits and target (B, classes)."""
    return nn.functional.cross_entropy(logits, target)
