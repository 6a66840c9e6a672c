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

from ptmq_lightning.runtime.errors import ConfigError, DataError, ModelError
from ptmq_lightning.runtime.info import ModelInfo
from ptmq_lightning.runtime.preprocessing import Preprocessing


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
    from PIL import Image  # only where pictures are read

    channels = preprocessing.input_size[0]
    try:
        with Image.open(file) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # a decoder meets damaged bytes with errors of any kind
        raise DataError(
            f"cannot read '{name or file}' ({type(error).__name__}); expected a picture that Pillow opens. Check the "
            f"path."
        ) from error
    pixels = np.asarray(_cut(image, preprocessing), dtype=np.uint8).copy()
    x = torch.from_numpy(pixels).reshape(*pixels.shape[:2], channels).permute(2, 0, 1).float().div_(255)  # (C, H, W)
    mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return x.sub_(mean).div_(std)


def _cut(image: Any, preprocessing: Preprocessing) -> Any:
    """The picture at the network's size (H, W)."""
    from PIL import Image

    _, height, width = preprocessing.input_size
    mode, crop = preprocessing.crop_mode, preprocessing.crop_pct
    if mode not in ("center", "squash") or height != width:
        raise ConfigError(
            f"found crop_mode={mode!r} and {height} x {width} pixels in the model's preprocessing; expected 'center' "
            f"or 'squash' and a square. Prepare the images yourself and feed tensors to the model."
        )
    filters = Image.Resampling[preprocessing.interpolation.upper()]
    edge = math.floor(height / crop)
    if mode == "squash":
        image = image if image.size == (edge, edge) else image.resize((edge, edge), filters)
    else:
        short, long = sorted(image.size)
        far = int(edge * long / short)
        if short != edge:
            image = image.resize((edge, far) if image.size[0] <= image.size[1] else (far, edge), filters)
    left, top = (round((size - height) / 2.0) for size in image.size)
    return image.crop((left, top, left + width, top + height))
