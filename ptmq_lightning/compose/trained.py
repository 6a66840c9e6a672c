"""The stages of the methods that train with labels; for every other method they do nothing.

robustquant trains the float network, before it is folded; any_precision and multiquant train the quantized network as a
whole, in place of the reconstruction. What a comparison wants to know of each goes to finetune.json.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ptmq_lightning.compose.progress import Progress
from ptmq_lightning.config import parts
from ptmq_lightning.config.schema import Config
from ptmq_lightning.data.module import calibration_labels, eval_loader
from ptmq_lightning.data.sources import Sources
from ptmq_lightning.evaluation.accuracy import measure_accuracy
from ptmq_lightning.finetune.baselines import BASELINES, FineTuning
from ptmq_lightning.finetune.fit import Batches, fit
from ptmq_lightning.finetune.network import SharedModel, commit
from ptmq_lightning.finetune.switching import switch_milliseconds
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.reconstruction.reconstruct import BlockResult
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.model import MultiBitModel

TRAIN_IMAGES = 500  # training images on which the accuracy is told beside the evaluation's


def baseline(config: Config) -> type[FineTuning] | None:
    """The baseline that trains with labels; None for every other method."""
    return None if config.finetune.name == "none" else BASELINES[config.finetune.name]


def trains_whole_network(config: Config) -> bool:
    """Whether the quantized network itself is trained: its norms stay, and no block is reconstructed."""
    kind = baseline(config)
    return kind is not None and not kind.before_folding


def tune(
    network: Network, images: Tensor, sources: Sources, indices: list[int], config: Config, loggers: Sequence[Logger]
) -> Network:
    """The float network, or where a baseline trains it a trained copy of it; images (N, C, H, W) where the fit is to
    run."""
    kind = baseline(config)
    if kind is None or not kind.before_folding:
        return network
    batches = labeled(images, sources, indices, config)
    module = copy.deepcopy(network.module).to(images.device)
    run(kind(module, config.finetune, len(batches), config.seed), batches, config, loggers)
    return replace(network, module=module.cpu(), source=f"{network.source}, fine-tuned by {config.finetune.name}")


def train(
    model: MultiBitModel,
    images: Tensor,
    sources: Sources,
    indices: list[int],
    config: Config,
    loggers: Sequence[Logger],
) -> tuple[SharedModel, list[BlockResult]]:
    """The calibrated model with norms, trained as a whole and committed, and how the fit went; images (N, C, H, W)."""
    batches, kind = labeled(images, sources, indices, config), baseline(config)
    assert kind is not None
    fitted = kind(kind.trainable(model), config.finetune, len(batches), config.seed)
    seconds = run(fitted, batches, config, loggers)
    fitted.finish(images)
    network = fitted.network
    assert isinstance(network, SharedModel)
    commit(network)
    return network, [BlockResult("network", seconds, fitted.latest)]


def labeled(images: Tensor, sources: Sources, indices: list[int], config: Config) -> Batches:
    """The calibration images with their labels, in batches for all epochs."""
    labels = calibration_labels(sources.train, indices).to(images.device)
    return Batches(images, labels, config.finetune, config.seed)


def run(module: FineTuning, batches: Batches, config: Config, loggers: Sequence[Logger]) -> float:
    """One fit with the run's Trainer; seconds."""
    trainer = parts.trainer(config.trainer, loggers=loggers, callbacks=[Progress(len(batches))])
    return fit(module, batches, trainer)


@rank_zero_only
def record_costs(
    path: Path,
    model: MultiBitModel,
    sources: Sources,
    indices: list[int],
    config: Config,
    seconds: float,
    peak_memory_bytes: int,
) -> None:
    """finetune.json: labels, epochs, storage, the cost of a switch, and the accuracy on training images.

    seconds: of the training. stored_bytes: of the files of model/, which serve all widths.
    """
    if config.finetune.name == "none":
        return
    seen = sources.train.take(indices[:TRAIN_IMAGES])
    training = measure_accuracy(model, eval_loader(seen, config.data.eval_batch), config.bits.evaluate)
    costs: dict[str, Any] = {
        "method": config.finetune.name,
        "images": len(indices),
        "labels": len(indices),
        "epochs": config.finetune.epochs,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "stored_bytes": sum(file.stat().st_size for file in (path / "model").iterdir()),
        "switch_milliseconds": switch_milliseconds(model, model.pairs),
        "statistics": statistics(model),
        "train_images": training.images,
        "train_top1": {row.config: row.top1 for row in training.rows},
    }
    write_atomically(path / "finetune.json", json.dumps(costs, indent=2) + "\n")


def statistics(model: MultiBitModel) -> dict[str, Any]:
    """What a norm's statistics cost at a switch: nothing (folded), memory (kept per width), or passes of images."""
    if not isinstance(model, SharedModel):
        return {"kind": "folded", "images": 0, "milliseconds": 0.0}
    if model.statistics is not None:
        return {"kind": "re-estimated", **model.statistics}
    return {"kind": "kept per width", "images": 0, "milliseconds": 0.0}
