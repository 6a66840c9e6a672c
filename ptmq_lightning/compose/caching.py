"""Where the calibration cache of a run is kept: in memory where it fits, else in files."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import torch

from ptmq_lightning.compose.free import free_memory, lies_in_memory
from ptmq_lightning.reconstruction.store import MEMORY, OnDisk, OnHost, Store
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.memory import release_freed_memory

log = logging.getLogger(__name__)

SHARE = 0.7  # of the free memory, for the cache: the fits and the evaluation need the rest
CPU = torch.device("cpu")


def choose_store(
    wanted: str, size: int, device: torch.device, folder: Path | None = None, *, processes: int = 1
) -> Store:
    """Where features are kept; told in one line of log.

    Args:
        wanted: trainer.cache: auto, memory or disk.
        size: of the cache, in bytes.
        device: that computes.
        folder: for files; None: the system's for temporary ones.
        processes: on this machine, each with a cache of its own.

    Raises:
        ConfigError: it is to be in files, and there is no room for them or they would be in memory themselves.
    """
    release_freed_memory()
    free = free_memory(device)
    told = "" if free is None else f", {_told(free)} of memory are free on {device.type}"
    if wanted == "memory" or (wanted == "auto" and _fits(size * (processes if device == CPU else 1), free)):
        log.info("feature cache: %s at its largest, in memory%s", _told(size), told)
        return MEMORY
    if wanted == "auto" and device.type != "cpu" and _fits(size * processes, free_memory(CPU)):
        log.info("feature cache: %s at its largest, in the CPU's memory%s", _told(size), told)
        return OnHost(device)
    place = folder or Path(tempfile.gettempdir())
    _require_room(place, size, processes, "TMPDIR" if folder is None else "hydra.run.dir")
    log.info("feature cache: %s at its largest, in files in %s%s", _told(size), place, told)
    return OnDisk(place, device)


def _fits(size: int, free: int | None) -> bool:
    return free is None or size <= SHARE * free


def _require_room(folder: Path, size: int, processes: int, key: str) -> None:
    """Raises ConfigError."""
    fewer = f"set {key} to a folder on another disk, or take fewer images (data.calibration_images) or pairs (bits)"
    if lies_in_memory(folder):
        raise ConfigError(
            f"the feature cache of {_told(size)} does not fit into memory, and {folder} lies in memory too; expected a "
            f"folder on a disk: {fewer}"
        )
    free = shutil.disk_usage(folder).free
    if free < size * processes:
        raise ConfigError(
            f"the feature cache of {_told(size * processes)} does not fit into memory, and {folder} has room for "
            f"{_told(free)}; expected it on its disk: {fewer}"
        )


def _told(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
