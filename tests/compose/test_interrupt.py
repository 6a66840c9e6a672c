"""Ctrl-C is heeded also where Python drops it."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from ptmq_lightning.compose.interrupt import heeding_interrupts


class Interrupted:
    """Ctrl-C comes while it is thrown away."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_destructor_comes_a_moment_later() -> None:
    with pytest.raises(KeyboardInterrupt), heeding_interrupts():
        Interrupted()
        time.sleep(10)


def test_hook_and_handler_are_put_back() -> None:
    before = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    with heeding_interrupts():
        assert sys.unraisablehook is not before[0]
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == before
