"""The seeded calibration draw and the evaluation loader."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from ptmq_lightning.data.images import UNLABELED
from ptmq_lightning.data.sources import permutation
from ptmq_lightning.runtime.errors import DataError


def draw_calibration(
    dataset: Any, n: int, seed: int, evaluation: Any = None, key: str = "data.calibration_images"
) -> list[int]:
    """Draw n different images of ``dataset``: their indices, in random order.

    The same (dataset, seed) gives the same indices on every platform, and a smaller draw is the beginning of a larger
    one, so the first images of a draw are themselves a fair draw. Images stored byte for byte in ``evaluation`` too
    (any data set of this room) are passed over: calibration and evaluation never share one. key: that n was set by.

    Raises:
        DataError: fewer than n images are there.
    """
    twins = _Twins(evaluation) if evaluation is not None else None
    drawn: list[int] = []
    passed_over = 0
    for index in permutation(len(dataset), seed):
        if len(drawn) == n:
            break
        if twins is not None and twins.holds(dataset, index):
            passed_over += 1
        else:
            drawn.append(index)
    if len(drawn) < n or n < 1:
        shared = f", {passed_over} of them evaluation images too" if passed_over else ""
        left = len(dataset) - passed_over
        cure = f"set {key} between 1 and {left}" if left else "give a source with other images: data.train"
        raise DataError(f"{key}={n}, but the calibration source holds {len(dataset)} images{shared}; {cure}")
    return drawn


class _Twins:
    """The stored images of a data set, found again by content; only files of equal length are read."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.by_size: dict[int, list[int]] = {}
        self.digests: dict[int, set[str]] = {}
        for index in range(len(dataset)):
            self.by_size.setdefault(dataset.size(index), []).append(index)

    def holds(self, dataset: Any, index: int) -> bool:
        size = dataset.size(index)
        if size not in self.by_size:
            return False
        if size not in self.digests:
            self.digests[size] = {self.dataset.digest(i) for i in self.by_size[size]}
        return dataset.digest(index) in self.digests[size]


def calibration_images(dataset: Any, indices: list[int]) -> Tensor:
    """The images at ``indices`` as one float tensor (N, 3, H, W), in that order."""
    return torch.stack([dataset[index][0] for index in indices])


def calibration_labels(dataset: Any, indices: list[int]) -> Tensor:
    """The labels at ``indices`` as int64 (N,), for methods that train. Raises DataError where one has none."""
    labels = [int(dataset[index][1]) for index in indices]
    if missing := [index for index, label in zip(indices, labels, strict=True) if label == UNLABELED]:
        raise DataError(
            f"{len(missing)} of {len(indices)} calibration images have no label, first {dataset.filename(missing[0])}; "
            "this method trains with labels: give data.train as folders named by the classes that data.val has"
        )
    return torch.tensor(labels)


def eval_loader(dataset: Any, batch: int, *, workers: int = 0) -> DataLoader[Any]:
    """Batches (B, 3, H, W) and labels (B,) of the whole data set in its own order, the last one as long as it comes."""
    return DataLoader(dataset, batch_size=batch, shuffle=False, num_workers=workers, worker_init_fn=_reopen_tars)


def _reopen_tars(_: int) -> None:
    """A forked worker must not share its parent's open tar: they would move one file position."""
    info = get_worker_info()
    reader = getattr(info.dataset, "reader", None) if info is not None else None
    state = getattr(reader, "tar_state", {})
    for tar in state.values() if isinstance(state, dict) else [state]:
        tar.reset()
        for child in tar.children.values():
            child.reset()
