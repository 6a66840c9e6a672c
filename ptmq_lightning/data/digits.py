"""scikit-learn's bundled handwritten digits as color images: the embedded data, offline on every machine.

1,797 gray 8x8 images of the UCI test set (E. Alpaydin, C. Kaynak, 1998). The division into 1,097 training and 700
evaluation images is fixed, so that a float network trained once never sees an evaluation image of any run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from ptmq_lightning.data.images import transform_of
from ptmq_lightning.runtime.preprocessing import Preprocessing

EVALUATION_IMAGES = 700
SPLIT_SEED = 0


class Digits(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Digits of ``pixels`` (N, 8, 8) uint8; items are (float tensor (3, H, W), int label)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, preprocessing: Preprocessing) -> None:
        self.pixels, self.labels, self.preprocessing = pixels, labels, preprocessing
        self.transform = transform_of(preprocessing)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index]).convert("RGB")), int(self.labels[index])

    def take(self, indices: Sequence[int]) -> Digits:
        """The digits at ``indices``, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Digits(self.pixels[chosen], self.labels[chosen], self.preprocessing)

    def prepared_for(self, preprocessing: Preprocessing) -> Digits:
        """The same digits, as another network wants them."""
        return Digits(self.pixels, self.labels, preprocessing)

    def filename(self, index: int) -> str:
        """A name for messages: the files have none."""
        return f"digit {index} (a {self.labels[index]})"

    def size(self, index: int) -> int:
        """Bytes of the stored image."""
        return int(self.pixels[index].nbytes)

    def digest(self, index: int) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels[index].tobytes()).hexdigest()


def open_digits(preprocessing: Preprocessing) -> tuple[Digits, Digits]:
    """The training and the evaluation part, stratified, the same in every run."""
    bundle = load_digits()
    pixels = np.rint(bundle.images * (255 / 16)).astype(np.uint8)  # 16 gray levels -> 0..255
    train, val = train_test_split(
        np.arange(len(pixels)), test_size=EVALUATION_IMAGES, random_state=SPLIT_SEED, stratify=bundle.target
    )
    everything = Digits(pixels, bundle.target, preprocessing)
    return everything.take(sorted(train)), everything.take(sorted(val))
