"""What a run holds: objects that no collection has to look at, and its peak."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


@contextlib.contextmanager
def old_objects_set_aside() -> Iterator[None]:
    """What Python holds now is not searched for garbage until the end of the block: every unit of a fit ends with a
    collection, which takes a third of a second on the modules that were imported and nothing on what the unit made."""
    before = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not before:  # else the caller's own would come back too
            gc.unfreeze()


def forget_peak_memory() -> None:
    """What `peak_memory` tells is counted from here on: the runs of a sweep share a process. Elsewhere than on Linux
    the process's own peak cannot be set back."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Bytes since `forget_peak_memory`: of the GPU where one was used, else of this process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
