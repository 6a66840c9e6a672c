"""Where the features of a reconstruction are kept: in the device's memory, in the CPU's beside a GPU, or in files.

The fit reads and writes features a few images at a time, so that it need not know. N calibration images, B of a batch.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layout import channels_last, from_rows, rows


class Kept(Protocol):
    """Features (N, ...), a tensor or not: read by a slice or by image numbers, on the device that computes."""

    @property
    def shape(self) -> torch.Size: ...
    @property
    def device(self) -> torch.device: ...
    def __len__(self) -> int: ...
    def __getitem__(self, images: slice | Tensor, /) -> Tensor: ...
    def __setitem__(self, images: slice, features: Tensor, /) -> None: ...


class Room(Protocol):
    """Place for the features of N images, each in a row of its own."""

    def kept(self, like: Tensor) -> Kept:
        """Features (N, ...) of the shape of these (B, ...), laid out as they are, an image's at the start of its
        row."""


class Store(ABC):
    """What gives room."""

    @abstractmethod
    def room(self, count: int, width: int, like: Tensor) -> Room:
        """For ``count`` images with ``width`` numbers each, of the type of ``like``."""

    def empty(self, count: int, like: Tensor) -> Kept:
        """Features of ``count`` images, of the type and shape of ``like`` (B, ...), in a room of their own."""
        return self.room(count, like[0].numel(), like).kept(like)


class InMemory(Store):
    """In the memory of the device that computes."""

    def room(self, count: int, width: int, like: Tensor) -> Room:
        return TensorRoom(like.new_empty((count, width)))

    def empty(self, count: int, like: Tensor) -> Tensor:
        return super().empty(count, like)  # type: ignore[return-value]


MEMORY = InMemory()


class OnHost(Store):
    """In the CPU's memory, for another device that computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def room(self, count: int, width: int, like: Tensor) -> Room:
        return HostRoom(torch.empty((count, width), dtype=like.dtype), self.device)


class OnDisk(Store):
    """In files without a name: the system takes them back when the process lets them go, however it ends.

    They are read and written rather than mapped. A process that maps a file is as large as what it has touched of it;
    this way what stays in memory is the system's own cache of files, which it drops when memory is asked for.

    Args:
        folder: on the disk that holds them.
        device: that computes.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.rooms: weakref.WeakSet[FileRoom] = weakref.WeakSet()

    def room(self, count: int, width: int, like: Tensor) -> Room:
        file: Any = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  the room closes it
        try:
            _reserve(file, count * width * like.element_size(), self.folder)
        except ConfigError:
            file.close()
            raise
        room = FileRoom(file, count, width * like.element_size(), like.dtype, self.device)
        self.rooms.add(room)
        return room


class TensorRoom:
    """Rows (N, width) of a tensor."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def kept(self, like: Tensor) -> Tensor:
        return from_rows(self.rows[:, : like[0].numel()], like.shape, last=channels_last(like))


class HostRoom:
    """Rows (N, width) of a tensor that is not on the device that computes."""

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self.rows, self.device = rows, device

    def kept(self, like: Tensor) -> Kept:
        return HostFeatures(TensorRoom(self.rows).kept(like), self.device)


class ChannelsLast:
    """Images (N, C, H, W), of which a batch is handed out with channels last; what a network makes of it is laid out
    alike."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.device, self.shape = images, images.device, images.shape

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, images: slice | Tensor) -> Tensor:
        return self.images[images].contiguous(memory_format=torch.channels_last)

    def __setitem__(self, images: slice, features: Tensor) -> None:
        self.images[images] = features


class HostFeatures:
    """Features (N, ...) that are not on the device that computes."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self.values, self.device, self.shape = values, device, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, images: slice | Tensor) -> Tensor:
        return self.values[images.cpu() if isinstance(images, Tensor) else images].to(self.device)

    def __setitem__(self, images: slice, features: Tensor) -> None:
        self.values[images] = features.to(self.values.device)


class FileRoom:
    """Rows of a file, ``width`` bytes each."""

    def __init__(self, file: FileIO, count: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.file, self.count, self.width, self.dtype, self.device = file, count, width, dtype, device
        weakref.finalize(self, file.close)

    def kept(self, like: Tensor) -> Kept:
        return FileFeatures(self, torch.Size((self.count, *like.shape[1:])), last=channels_last(like))


class FileFeatures:
    """Features (N, ...) in a file."""

    def __init__(self, room: FileRoom, shape: torch.Size, *, last: bool) -> None:
        self.room, self.shape, self.last, self.device = room, shape, last, room.device

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice | Tensor) -> Tensor:
        numbers = self._numbers(images)
        part = torch.empty((len(numbers), self.shape[1:].numel()), dtype=self.room.dtype)
        for number, row in zip(numbers, _bytes(part), strict=True):
            self.room.file.seek(number * self.room.width)
            if (read := self.room.file.readinto(row)) != len(row):
                raise OSError(f"{read} of {len(row)} bytes of features were read; expected all of them")
        return from_rows(part, self.shape, last=self.last).to(self.device)

    def __setitem__(self, images: slice, features: Tensor) -> None:
        for number, row in zip(
            self._numbers(images), _bytes(rows(features.detach().cpu(), last=self.last)), strict=True
        ):
            self.room.file.seek(number * self.room.width)
            if (written := self.room.file.write(row)) != len(row):
                raise OSError(f"{written} of {len(row)} bytes of features were written; expected all of them")

    def _numbers(self, images: slice | Tensor) -> Sequence[int]:
        if isinstance(images, slice):
            return range(*images.indices(len(self)))
        numbers: list[int] = images.tolist()
        return numbers


def _bytes(values: Tensor) -> Any:
    """(B, n) -> a memory view per image."""
    return [row.data for row in values.contiguous().view(torch.uint8).numpy()]


def _reserve(file: FileIO, size: int, folder: Path) -> None:
    """Room on the disk before it is written to: none is missing in the middle of a fit.

    Raises:
        ConfigError: there is no such room.
    """
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise ConfigError(
            f"found no room for a file of {size / 2**20:.0f} MiB for features in {folder} ({error.strerror}); expected "
            "it on the disk. Free some, use a folder on another disk, or fewer calibration images or pairs"
        ) from error
