"""Ctrl-C ends a command wherever it comes.

Python drops an exception that is raised in a destructor, KeyboardInterrupt too, and a fit makes and drops thousands of
objects that have one: without this, one Ctrl-C of a few would do nothing.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

LATER = 0.05  # seconds: out of the destructor by then, or it is dropped and raised once more


@contextmanager
def heeding_interrupts() -> Iterator[None]:
    """Raise a KeyboardInterrupt that was dropped again a moment later. In the main thread, where there are signals."""
    if not hasattr(signal, "setitimer"):
        yield
        return
    hook = sys.unraisablehook

    def dropped(what: Any) -> None:
        if isinstance(what.exc_value, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, LATER)
        else:
            hook(what)

    before = signal.signal(signal.SIGALRM, _interrupt)
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
