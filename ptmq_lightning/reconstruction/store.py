"""Where the features of a reconstruction are kept: in the device's memory, in the CPU's beside a GPU, or in files.

The fit reads and writes features a few images at a time, so that it need not know. N calibration images, B of a batch.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ConfigError

RESIDENT = 2**28  # bytes of mapped files that stay in memory


class Kept(Protocol):
    """Features (N, ...), a tensor or rows of a file: by a slice or by image numbers, on the device that computes."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, images: slice | Tensor, /) -> Tensor: ...
    def __setitem__(self, images: slice | Tensor, features: Tensor, /) -> None: ...


class Store(ABC):
    """A place for features."""

    @abstractmethod
    def room(self, count: int, width: int, like: Tensor) -> Tensor:
        """(count, width) of the type of ``like``, not filled."""

    @abstractmethod
    def kept(self, room: Tensor) -> Kept:
        """Features (N, ...) that lie in a room, for those who read and write them."""

    def empty(self, count: int, like: Tensor) -> Kept:
        """A room for ``count`` images of the type and shape of ``like`` (B, ...)."""
        return self.kept(self.room(count, like[0].numel(), like).view(count, *like.shape[1:]))


class InMemory(Store):
    """In the memory of the device that computes."""

    def room(self, count: int, width: int, like: Tensor) -> Tensor:
        return like.new_empty((count, width))

    def kept(self, room: Tensor) -> Kept:
        return room


MEMORY = InMemory()


class OnHost(Store):
    """In the CPU's memory, for a device that computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def room(self, count: int, width: int, like: Tensor) -> Tensor:
        return torch.empty((count, width), dtype=like.dtype)

    def kept(self, room: Tensor) -> Kept:
        return Rows(room, self.device)


class OnDisk(Store):
    """In files that are mapped into memory.

    The files have no name: the system takes them back when they are not mapped any more, however the process ends.

    Args:
        folder: on the disk that holds them.
        device: that computes.
        resident: bytes of them that stay in memory; what goes beyond is left to the system's own cache of files.
    """

    def __init__(self, folder: Path, device: torch.device, resident: int = RESIDENT) -> None:
        self.folder, self.device, self.resident = folder, device, resident
        self.maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._touched = 0

    def room(self, count: int, width: int, like: Tensor) -> Tensor:
        size = count * width * like.element_size()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            _reserve(file.fileno(), size, self.folder)
            mapped = mmap.mmap(file.fileno(), size)
        self.maps.add(mapped)
        return torch.frombuffer(mapped, dtype=like.dtype).view(count, width)

    def kept(self, room: Tensor) -> Kept:
        return Rows(room, self.device, self.touch)

    def touch(self, size: int) -> None:
        """Counts what was read or written since the pages were last let go. The pages stay in the system's cache as
        long as it likes; a process that holds on to them would look as large as its files, and be killed for it."""
        self._touched += size
        if self._touched > self.resident and hasattr(mmap, "MADV_DONTNEED"):
            self._touched = 0
            for mapped in list(self.maps):
                mapped.madvise(mmap.MADV_DONTNEED)


class Rows:
    """Features (N, ...) off the device that computes."""

    def __init__(self, values: Tensor, device: torch.device, touch: Callable[[int], None] = lambda size: None) -> None:
        self.values, self.device, self.touch = values, device, touch

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, images: slice | Tensor) -> Tensor:
        part = self.values[_here(images)]
        self.touch(part.nbytes)
        return part.to(self.device)

    def __setitem__(self, images: slice | Tensor, features: Tensor) -> None:
        self.touch(features.nbytes)
        self.values[_here(images)] = features.to(self.values.device)


def _here(images: slice | Tensor) -> slice | Tensor:
    return images.cpu() if isinstance(images, Tensor) else images


def _reserve(file: int, size: int, folder: Path) -> None:
    """Room on the disk before it is written to: a mapped file that finds none later kills the process.

    Raises:
        ConfigError: there is no such room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        raise ConfigError(
            f"found no room for a file of {size / 2**30:.2f} GiB for features in {folder} ({error.strerror}); expected "
            "it on the disk. Free some, use a folder on another disk, or fewer calibration images or pairs"
        ) from error
