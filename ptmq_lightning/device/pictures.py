"""Pictures as the network wants them, from the preprocessing that travels with the model: Pillow and torch alone.

The same pixels as timm's evaluation transform gives: the shorter edge to size / crop_pct, the middle cut out (crop_mode
"center"), or both edges to the size (crop_mode "squash"); scaled to [0, 1] and normalized.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ptmq_lightning.runtime.decode import decode
from ptmq_lightning.runtime.errors import ConfigError, DataError, ModelError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing

MOST_PIXELS = 1 << 27  # of a resized picture: a thin one grows far beyond the network's size


def preprocessing_of(info: ModelInfo) -> Preprocessing:
    """How a model wants its pictures. Raises ModelError where it does not tell."""
    if info.preprocessing is None:
        raise ModelError(
            "the model does not tell how pictures become its images; expected a Preprocessing in info.preprocessing. "
            "Set it before saving, or feed tensors to the model instead of files."
        )
    return info.preprocessing


def open_picture(file: Path | str | BinaryIO, preprocessing: Preprocessing, name: str | None = None) -> Tensor:
    """A picture as the network takes it.

    Args:
        file: a path, or a file that is open for reading.
        preprocessing: the network's own.
        name: of an open file, for messages.

    Returns:
        float32 (C, H, W).

    Raises:
        DataError: a file that is no picture.  ConfigError: a preprocessing that this file cannot follow.
    """
    channels = preprocessing.input_size[0]
    image = decode(file, channels, name)
    pixels = np.asarray(_cut(image, preprocessing), dtype=np.uint8).copy()
    x = torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).float().div_(255)  # (C, H, W)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return x.sub_(mean).div_(std)


def _cut(image: Any, preprocessing: Preprocessing) -> Any:
    """The picture at the network's size (H, W)."""
    from PIL import Image

    _, height, width = preprocessing.input_size
    mode, crop = preprocessing.crop_mode, preprocessing.crop_pct
    if mode not in ("center", "squash"):
        raise ConfigError(
            f"found crop_mode={mode!r} in the model's preprocessing; expected 'center' or 'squash'. Prepare the images "
            f"yourself and feed tensors to the model."
        )
    filters = Image.Resampling[preprocessing.interpolation.upper()]
    size = _scaled(image.size, (math.floor(width / crop), math.floor(height / crop)), mode)
    if math.prod(size) > MOST_PIXELS:
        raise DataError(
            f"found a picture of {image.size[0]} x {image.size[1]} pixels, which becomes {size[0]} x {size[1]} for the "
            f"network; expected at most {MOST_PIXELS:,} pixels. Cut its longer edge"
        )
    if image.size != size:
        image = image.resize(size, filters)
    left, top = (round((have - want) / 2.0) for have, want in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def _scaled(size: tuple[int, int], target: tuple[int, int], mode: str) -> tuple[int, int]:
    """The (width, height) that a picture is resized to before `target` over crop_pct is cut out of its middle."""
    if mode == "squash":
        return target
    if target[0] == target[1]:  # the shorter edge
        short, long = sorted(size)
        edge, far = target[0], int(target[0] * long / short)
        return (edge, far) if size[0] <= size[1] else (far, edge)
    ratio = min(have / want for have, want in zip(size, target, strict=True))
    return round(size[0] / ratio), round(size[1] / ratio)


def spread(there: int, count: int) -> list[int]:
    """At most ``count`` indices, evenly spread over those that are there."""
    picks: list[int] = np.linspace(0, there - 1, min(count, there)).round().astype(int).tolist()
    return picks
