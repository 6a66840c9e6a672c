"""Progress bars with the time left, where a person watches: below the lines of the log, one for what is being done.

In a pipe, a file or a process of several there are none, and `compose.progress` says the same in plain lines.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LINE = "ptmq_progress"  # marks the log records that a bar stands for

_shown: Any = None  # the bars of this process


@contextmanager
def shown() -> Iterator[None]:
    """While the block lasts, `show` draws bars on a terminal; the log's lines appear above them."""
    global _shown
    if _shown is not None or not watched():
        yield
        return
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.progress import BarColumn, Progress, TextColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(30), TextColumn("{task.fields[told]}")
    bars = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
    handlers = [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
    streams = [handler.setStream(FileProxy(console, handler.stream)) for handler in handlers]
    for handler in handlers:
        handler.addFilter(_no_line)
    _shown = bars
    try:
        with bars:
            yield
    finally:
        _shown = None
        for handler, stream in zip(handlers, streams, strict=True):
            handler.removeFilter(_no_line)
            if stream is not None:
                handler.setStream(stream)


def watched() -> bool:
    """Whether a person sees this process's stderr; of several processes of one run only the first is seen."""
    return sys.stderr.isatty() and "LOCAL_RANK" not in os.environ


def show(phase: str, done: float, total: float, told: str) -> None:
    """Draw how far a phase is; nothing where there are no bars. told: what stands behind the bar."""
    if _shown is None:
        return
    if not _shown.tasks or _shown.tasks[-1].description != phase:
        hide()
        _shown.add_task(phase, total=total, told=told)
    _shown.update(_shown.tasks[-1].id, completed=done, total=total, told=told)


def hide() -> None:
    """Nothing is being done that has a bar."""
    if _shown is not None:
        for task in _shown.task_ids:
            _shown.remove_task(task)


def _no_line(record: logging.LogRecord) -> bool:
    return not getattr(record, LINE, False)
