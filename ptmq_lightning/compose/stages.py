"""The stages of a run, and the seconds of each: together they are its wall time."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

OPTIONAL = "fine-tune", "tune", "allocate"  # stages that some runs pass by
TOLD = 0.05  # seconds from which one of them is told

_LOADED = time.monotonic()
_told = False


class Stages:
    """seconds: of every stage so far, by name. What passes between two stages counts for the later one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"start": seconds_to_here()}
        self._last = time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done inside is this stage's."""
        yield
        self.end(name)

    def end(self, name: str) -> None:
        """All since the last stage was this one's, which may have more than one part; a line says so where anything was
        done."""
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
        if name not in OPTIONAL or self.seconds[name] >= TOLD:
            log.info("%s: %.1f s", name, self.seconds[name])


def seconds_to_here() -> float:
    """Seconds since this process started: imports and the composition of the configuration. The first run of a process
    alone is told: for a later one of a sweep it is nothing."""
    global _told
    if _told:
        return 0.0
    _told = True
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):  # no Linux: what was imported before is not told
        return time.monotonic() - _LOADED
