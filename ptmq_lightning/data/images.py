"""One source of images, preprocessed as the network wants them.

Shapes: H and W are the network's input size; an item is (float tensor (3, H, W), int label).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor

from ptmq_lightning.runtime.decode import decode
from ptmq_lightning.runtime.preprocessing import Preprocessing

UNLABELED = -1


def transform_of(preprocessing: Preprocessing) -> Any:
    """timm's evaluation transform: PIL image -> float tensor (3, H, W). crop_pct 1 at the same size resizes nothing."""
    return create_transform(
        input_size=preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )


def class_folders(reader: Any) -> dict[str, int]:
    """A timm reader's own numbering of its class folders; its tar reader has another name for it than the others."""
    numbers: dict[str, int] = reader.class_name_to_idx if hasattr(reader, "class_name_to_idx") else reader.class_to_idx
    return numbers


class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A choice of images of one timm reader (folder, tar, Hugging Face data set).

    timm's own ``ImageDataset`` goes on to the next image where one cannot be decoded, and its class map drops images of
    unknown folders, both without a word; here the first is an error and the second a label of ``UNLABELED``.
    """

    def __init__(
        self,
        reader: Any,
        preprocessing: Preprocessing,
        *,
        name: str,
        classes: Mapping[str, int] | None = None,
        indices: Sequence[int] | None = None,
    ) -> None:
        self.reader = reader
        self.preprocessing = preprocessing
        self.name = name
        self.transform = transform_of(preprocessing)
        self.indices = list(range(len(reader))) if indices is None else list(indices)
        numbers = class_folders(reader)
        self.labels = {i: i if classes is None else classes.get(name, UNLABELED) for name, i in numbers.items()}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        file, target = self.reader[self.indices[index]]
        image = decode(file, self.preprocessing.input_size[0], f"{self.filename(index)} of {self.name}")
        return self.transform(image), self.labels.get(int(target), int(target))

    def take(self, indices: Sequence[int]) -> Images:
        """The same source, restricted to ``indices`` of this one (in that order)."""
        chosen = Images.__new__(Images)
        chosen.__dict__.update(self.__dict__, indices=[self.indices[i] for i in indices])
        return chosen

    def prepared_for(self, preprocessing: Preprocessing) -> Images:
        """The same images, as another network wants them."""
        chosen = self.take(range(len(self)))
        chosen.preprocessing, chosen.transform = preprocessing, transform_of(preprocessing)
        return chosen

    def filename(self, index: int) -> str:
        """The file's name inside its source."""
        return str(self.reader.filename(self.indices[index]))

    def size(self, index: int) -> int:
        """The stored file's length in bytes, without reading it where the reader allows."""
        with self._file(index) as file:
            return int(file.seek(0, io.SEEK_END))

    def digest(self, index: int) -> str:
        """SHA-256 of the stored file."""
        with self._file(index) as file:
            return hashlib.sha256(file.read()).hexdigest()

    def _file(self, index: int) -> Any:
        return self.reader[self.indices[index]][0]
