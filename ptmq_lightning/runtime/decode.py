"""A picture file as 8-bit pixels in the channels that a network takes. Pillow alone, and only when one is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ptmq_lightning.runtime.errors import DataError
from ptmq_lightning.runtime.extras import require

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # of Pillow, by the number of channels
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def decode(file: Path | str | BinaryIO, channels: int, name: str | None = None) -> Any:
    """A Pillow image of 8 bits per channel: 16-bit pictures are scaled, of animations it is the first frame.

    Args:
        channels: 1, 3 or 4.
        name: what an open file is called in an error.

    Raises:
        DataError: what Pillow does not decode, with its reason; another number of channels.
    """
    require("images", "PIL")
    from PIL import Image

    if channels not in MODES:
        raise DataError(
            f"found a network on {channels} channels; expected 1 (gray), 3 (RGB) or 4 (RGBA) to read pictures for. "
            f"Prepare the images yourself and give them as tensors."
        )
    try:
        with Image.open(file) as opened:
            return _eight_bits(opened).convert(MODES[channels])
    except Exception as error:  # a decoder meets damaged bytes with errors of any kind
        raise DataError(
            f"cannot read '{name or file}' ({type(error).__name__}: {error}); expected one that Pillow "
            f"opens ({', '.join(SUFFIXES)}). Remove it, or replace it by a sound copy."
        ) from error


def _eight_bits(image: Any) -> Any:
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values from {values.min()} to {values.max()}, expected 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
