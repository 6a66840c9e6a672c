"""What a process holds: memory that a step frees stays with it, for the next step, until its block is finished; and
the peak that a run tells.

glibc hands large blocks back to the kernel and faults them in again at every step of a fit, which costs a fifth of the
time on small blocks. Kept from block to block, though, it goes to pieces, and the process grows with the depth of the
network (`runtime.memory` hands it back). Other C libraries have neither call, and nothing happens there.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; False where the C library knows no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(name, value) == 1 for name, value in SETTINGS.items()])


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
