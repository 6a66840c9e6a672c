"""What is cheap to know before the fit: how images are prepared, who says so, and whether the float network can see.

A checkpoint does not say how its images were prepared, and a wrong mean or crop costs tens of points without an error.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from ptmq_lightning.data.module import eval_loader
from ptmq_lightning.data.sources import Sources, permutation
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.runtime.errors import ModelError

log = logging.getLogger(__name__)

IMAGES = 256  # of the evaluation images that the float network is tried on
ERRORS = 3.0  # standard errors that count as chance
SLACK = 1.0  # points that resizing and decoding may move


def tell_preprocessing(network: Network) -> None:
    """One line of log; a warning where a checkpoint of the user's got an architecture's default."""
    values = ", ".join(f"{key} {value}" for key, value in network.preprocessing.to_json().items())
    log.info("preprocessing: %s (%s)", values, network.preprocessing_source)
    if network.guessed:
        log.warning(
            "the checkpoint does not say how its images were prepared: %s is used. If it was trained otherwise, set "
            "+model.preprocessing={mean:[...],std:[...],crop_pct:...,interpolation:...}",
            network.preprocessing_source,
        )


@torch.inference_mode()
def count_classes(network: Network, images: Tensor) -> int:
    """How many classes the network tells apart; images (N, C, H, W).

    Raises:
        ModelError: it does not take these images.
    """
    try:
        logits: Tensor = network.module(images[:1])
    except Exception as error:  # a network may refuse in any way
        raise ModelError(
            f"{network.name} does not take images of {tuple(images.shape[1:])} (channels, height, width): {error} "
            "Expected a size that it was made for: set +model.preprocessing={input_size:[C,H,W]}, or its own size in "
            "model.kwargs."
        ) from error
    return logits.shape[1]


@torch.inference_mode()
def try_float_network(network: Network, sources: Sources, expected_top1: float | None, batch: int) -> float:
    """Top-1 of the float network on some evaluation images, in percent, told in one line.

    Args:
        expected_top1: what it is known to have, in percent; None: unknown.
        batch: images at a time.

    Raises:
        ModelError: it has less than expected, by more than the number of images explains.
    """
    picks = sorted(permutation(len(sources.val), 0)[:IMAGES])
    right = 0
    for images, labels in eval_loader(Subset(sources.val, picks), batch):
        right += int((network.module(images).argmax(1) == labels).sum())
    top1, count = 100 * right / len(picks), len(picks)
    error = _standard_error(top1, count)
    log.info("float network: top-1 %.1f %% of %d images (standard error %.1f)", top1, count, error)
    if expected_top1 is not None and top1 < expected_top1 - ERRORS * _standard_error(expected_top1, count) - SLACK:
        raise ModelError(
            f"the float network has top-1 {top1:.1f} % of {count} evaluation images; expected {expected_top1:g} "
            f"(model.expected_top1). Preprocessing: {network.preprocessing_source}; check model.preprocessing, the "
            f"order of the classes (data.class_map) and the checkpoint."
        )
    chance = 100 / sources.num_classes
    if network.trained and top1 <= chance + ERRORS * _standard_error(chance, count):
        log.warning(
            "the float network is no better than chance (%.1f %%): check the checkpoint, model.preprocessing (%s) and "
            "the order of the classes (data.class_map)",
            chance,
            network.preprocessing_source,
        )
    return top1


def _standard_error(percent: float, count: int) -> float:
    share: Any = min(max(percent / 100, 1 / count), 1 - 1 / count) if count > 1 else 0.5
    return 100 * math.sqrt(share * (1 - share) / count)
