"""Memory that a process freed: kept for its next step, or handed back.

glibc hands large blocks back to the kernel and faults them in again at every step of a fit and at every pass of a
network, which costs a fifth of the time. Kept for long, though, it goes to pieces, and a process grows with the depth
of the network. Other C libraries have neither call, and nothing happens there.
"""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of malloc.h
SETTINGS = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: 2**26}


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep what is freed; False where the C library knows no such settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(name, value) == 1 for name, value in SETTINGS.items()])


def release_freed_memory() -> bool:
    """Hand what is free now back to the kernel; False where nothing was, or the C library knows no such call."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
