"""Memory that a process freed and the C library kept."""

from __future__ import annotations

import ctypes


def release_freed_memory() -> bool:
    """Hand what is free now back to the kernel; False where nothing was, or the C library knows no such call."""
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
