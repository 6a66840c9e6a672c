"""Small image sources for the tests of this room."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from ptmq_lightning.runtime.preprocessing import Preprocessing

PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3, "bilinear", 1.0)


def png(value: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def folders(root: Path, classes: str, images: int, first: int = 0) -> Path:
    """``images`` different images in each class folder, named by their value."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            value = first + c * images + i
            (root / name / f"{value:03d}.png").write_bytes(png(value))
    return root


def tar(path: Path, source: Path) -> Path:
    with tarfile.open(path, "w") as file:
        for folder in sorted(source.iterdir()):
            file.add(folder, folder.name)
    return path


def values(dataset: Any) -> list[int]:
    """The red value of every image: which image it is."""
    return [round((float(dataset[i][0][0, 0, 0]) * 0.5 + 0.5) * 255) for i in range(len(dataset))]
