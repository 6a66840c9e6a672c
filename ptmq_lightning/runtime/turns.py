"""Which threads run a model and which of them switched it last.

A switch is a state of the whole model. A thread that asked for a width and then runs at another thread's would get
wrong numbers without a word, hence it gets an error that says how each thread has a switch of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ptmq_lightning.runtime.errors import ModelError


class Turns:
    """The account of one model. A copy of a model starts a new one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, int] = {}  # thread -> how many passes it is in
        self._latest = 0  # number of the latest switch
        self._own = threading.local()  # .latest: number of the thread's own

    def __reduce__(self) -> Any:
        return Turns, ()

    def require_own(self) -> None:
        """Raises ModelError where another thread switched after this one had."""
        if getattr(self._own, "latest", self._latest) != self._latest:
            raise _taken("another thread has switched this model since this thread did")

    @contextmanager
    def running(self) -> Iterator[None]:
        """A pass at the selected width. Raises ModelError where another thread switched after this one had."""
        me = threading.get_ident()
        with self._lock:
            self.require_own()
            self._running[me] = self._running.get(me, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._running[me] -= 1
                if not self._running[me]:
                    del self._running[me]

    @contextmanager
    def switching(self) -> Iterator[None]:
        """A switch. Raises ModelError where another thread is in a pass, whose later layers it would change."""
        me = threading.get_ident()
        with self._lock:
            if any(thread != me for thread in self._running):
                raise _taken("another thread is running this model while this one switches it")
            yield
            self._latest += 1
            self._own.latest = self._latest


def _taken(what: str) -> ModelError:
    return ModelError(
        f"{what}; expected a switch of its own for each thread. Give each of them own = model.handle(): the weights "
        f"are shared, the selected width is not."
    )
