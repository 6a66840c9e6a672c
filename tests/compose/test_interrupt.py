"""Ctrl-C is heeded also where Python drops it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from ptmq_lightning.compose.interrupt import heeding_interrupts


class Interrupted:
    """Ctrl-C comes while it is thrown away."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """A shell's background job ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_in_a_destructor_comes_a_moment_later(in_the_foreground: None) -> None:
    with pytest.raises(KeyboardInterrupt), heeding_interrupts():
        Interrupted()
        time.sleep(10)


def test_hook_and_handler_are_put_back() -> None:
    before = sys.unraisablehook, signal.getsignal(signal.SIGALRM)
    with heeding_interrupts():
        assert sys.unraisablehook is not before[0]
    assert (sys.unraisablehook, signal.getsignal(signal.SIGALRM)) == before
