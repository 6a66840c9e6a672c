"""How much a command says on the terminal: -q warnings and the end, -v every line also of a sweep's runs.

train.log of a run's folder holds every line whatever is said here. The choice travels in the environment, which the
processes of a launcher inherit.
"""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ptmq_lightning.compose import bars

COLUMNS = 100
QUIET, NORMAL, VERBOSE = -1, 0, 1
_FLAGS = {"-q": QUIET, "--quiet": QUIET, "-v": VERBOSE, "--verbose": VERBOSE}
_VARIABLE = "PTMQ_VERBOSITY"


def without_flags(words: Sequence[str]) -> list[str]:
    """The command without -q and -v, which are heeded from here on."""
    for word in words:
        if word in _FLAGS:
            os.environ[_VARIABLE] = str(_FLAGS[word])
    return [word for word in words if word not in _FLAGS]


def verbosity() -> int:
    """QUIET, NORMAL or VERBOSE."""
    return int(os.environ.get(_VARIABLE, NORMAL))


def hydra_level() -> str:
    """Of Hydra's own lines."""
    return "WARNING" if verbosity() == QUIET else "INFO"


def tell(logger: logging.Logger, text: str) -> None:
    """A line about one of a sweep's runs."""
    if verbosity() != QUIET:
        logger.info("%s", text)


@contextmanager
def of_job() -> Iterator[None]:
    """While one of a sweep's runs lasts, the terminal shows its warnings alone, with -v all."""
    with _filtered(lambda record: verbosity() == VERBOSE or record.levelno >= logging.WARNING):
        yield


@contextmanager
def of_run() -> Iterator[None]:
    """While a single run lasts, the terminal shows all in lines of at most 100 columns, with -q warnings alone."""
    with _filtered(lambda record: verbosity() != QUIET or record.levelno >= logging.WARNING), _wrapped():
        if verbosity() == QUIET:
            yield
            return
        with bars.shown():
            yield


class Wrapping(logging.Formatter):
    """Another formatter's text, folded at a blank."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        """At most 100 columns a line, where words allow it; what follows stands below the message."""
        text, indent = self.inner.format(record), " " * 9
        folded = [
            line if len(line) <= COLUMNS else textwrap.fill(
                line, COLUMNS, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
            )
            for line in text.split("\n")
        ]  # fmt: skip
        return "\n".join(folded)


@contextmanager
def _wrapped() -> Iterator[None]:
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    before = [handler.formatter for handler in handlers]
    for handler in handlers:
        handler.setFormatter(Wrapping(handler.formatter or logging.Formatter()))
    try:
        yield
    finally:
        for handler, formatter in zip(handlers, before, strict=True):
            handler.setFormatter(formatter)


@contextmanager
def _filtered(wanted: object) -> Iterator[None]:
    handlers = [h for h in logging.getLogger().handlers if type(h) is logging.StreamHandler]
    for handler in handlers:
        handler.addFilter(wanted)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(wanted)  # type: ignore[arg-type]
