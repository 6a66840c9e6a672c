"""Progress of a reconstruction as plain lines, as readable in a log file as on a terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

log = logging.getLogger(__name__)


class Progress(Callback):
    """Block k of n, iteration, losses per drawn width, time left; a line per ``every`` seconds at most, one per block.

    One instance serves all blocks of a run. It reads ``place`` and ``latest`` of the module.
    """

    def __init__(
        self, iters: int, *, first_block: int = 0, every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self.iters, self.first_block, self.every, self.clock = iters, first_block, every, clock
        self.started = self.shown = clock()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """A line, where the last one is old enough."""
        now = self.clock()
        if now - self.shown >= self.every and trainer.global_step < self.iters and trainer.is_global_zero:
            self.shown = now
            log.info("%s", self.line(module, trainer.global_step))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """A line for the finished block."""
        if trainer.is_global_zero:
            self.shown = self.clock()
            log.info("%s", self.line(module, self.iters))

    def line(self, module: Any, index: int) -> str:
        """Such as "block 3/11 layer1.2  iter 120/500  w3a3 0.0213  w5a5 0.0041  settled 0.41  left 2:30"."""
        figures = "  ".join(
            f"{name.removeprefix('loss/')} {value:.3g}"
            for name, value in module.latest.items()
            if name.startswith("loss/") or name == "settled"
        )
        at = module.place
        place = f"block {at.index + 1}/{at.count} {at.name}  iter {index}/{self.iters}"
        return "  ".join(part for part in (place, figures, f"left {clock_time(self._left(module, index))}") if part)

    def _left(self, module: Any, index: int) -> float:
        """Seconds, blocks taken as equally long; what a resumed run found done does not count."""
        done = module.place.index - self.first_block + index / self.iters
        total = module.place.count - self.first_block
        return (self.clock() - self.started) / max(done, 1e-9) * (total - done)


class Left:
    """Lines such as "calibrate: image 64 of 256, left 0:12" of a phase without losses, one in ``every`` seconds at
    most."""

    def __init__(
        self, phase: str, unit: str = "", every: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.phase, self.unit, self.every, self.clock = phase, unit, every, clock
        self.started = self.shown = clock()

    def __call__(self, done: int, total: int, unit: str | None = None) -> None:
        """So much of so much is done; parts are taken as equally long. unit: what is counted, where it changes."""
        now = self.clock()
        if unit is not None and unit != self.unit:
            self.unit, self.started = unit, now
        if now - self.shown >= self.every:
            self.shown = now
            left = clock_time((now - self.started) / max(done, 1) * (total - done))
            log.info("%s: %s %d of %d, left %s", self.phase, self.unit, done, total, left)


def clock_time(seconds: float) -> str:
    """Such as 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
