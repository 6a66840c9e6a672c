"""Progress of the long phases: bars on a terminal, else plain lines, as readable in a log file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer

from ptmq_lightning.compose import bars

EXPLAINED = "losses at the drawn widths; settled: the share of roundings that are decided (metrics.csv has all)"
log = logging.getLogger(__name__)


class Progress(Callback):
    """Block k of n, iteration, losses per drawn width, time left; a line per ``every`` seconds at most, one per block.

    One instance serves all blocks of a run. It reads ``place`` and ``latest`` of the module.
    """

    def __init__(
        self,
        iters: int,
        *,
        first_block: int = 0,
        explained: bool = True,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.iters, self.first_block, self.every, self.clock = iters, first_block, every, clock
        self.explained = explained  # a line says what the first one's figures are
        self.started = self.shown = clock()

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        """A line, where the last one is old enough."""
        now, index = self.clock(), trainer.global_step
        if not trainer.is_global_zero:
            return
        if self.explained and index == 1 and module.place.index == self.first_block:
            log.info("%s", EXPLAINED)
        at, left = module.place, clock_time(self._left(module, index))
        done = at.index + index / self.iters
        bars.show("reconstruct", done, at.count, f"block {at.index + 1} of {at.count} {at.name}, left {left}")
        if now - self.shown >= self.every and index < self.iters:
            self.shown = now
            log.info("%s", self.line(module, index), extra={bars.LINE: True})

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        """A line for the finished block."""
        if trainer.is_global_zero:
            self.shown = self.clock()
            log.info("%s", self.line(module, self.iters))
            if module.place.index + 1 == module.place.count:
                bars.hide()

    def line(self, module: Any, index: int) -> str:
        """Such as "block 3/11 layer1.2  iter 120/500  w3a3 0.0213  w5a5 0.0041  settled 41 %  left 2:30"."""
        latest = module.latest
        losses = [(name.removeprefix("loss/"), value) for name, value in latest.items() if name.startswith("loss/w")]
        parts = [f"{width} {value:.3g}" for width, value in losses]
        parts += [f"settled {100 * latest['settled']:.0f} %"] if "settled" in latest else []
        figures = "  ".join(parts)
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
        left = clock_time((now - self.started) / max(done, 1) * (total - done))
        told = f"{self.unit} {done} of {total}, left {left}"
        bars.show(self.phase, done, total, told)
        if done >= total:
            bars.hide()
        if now - self.shown >= self.every:
            self.shown = now
            log.info("%s: %s", self.phase, told, extra={bars.LINE: True})


def clock_time(seconds: float) -> str:
    """Such as 0:07, 12:30 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
