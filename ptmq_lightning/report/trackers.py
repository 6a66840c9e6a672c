"""Where a run's metrics go: metrics.csv always, W&B or TensorBoard beside it.

metrics.csv is the record: one file for all blocks, flushed line by line, continued by a resumed run. Lightning's own
CSVLogger keeps a folder per version and deletes what it finds there, which a fit per block and a resume do not survive.
"""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ptmq_lightning.report.end import End
from ptmq_lightning.report.keys import LoggerKeys
from ptmq_lightning.report.wandb_run import ITER, WandbTracker
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import write_atomically


@contextmanager
def open_trackers(
    folder: Path,
    settings: LoggerKeys,
    *,
    run: Path,
    widths: Sequence[str],
    hyperparameters: Mapping[str, Any],
    resume_step: int = 0,
) -> Iterator[list[Logger]]:
    """The loggers of one run in ``folder``; closed on errors too.

    Args:
        run: the run's own folder, which names it in W&B and stays the same when it is resumed.
        widths: names of all pairs that may be drawn; a column loss/NAME each.
        hyperparameters: the run's configuration, nested plain values.
        resume_step: lines of metrics.csv from this global step on are dropped: their block is fitted again.
    """
    loggers: list[Logger] = [CsvTracker(folder / "metrics.csv", columns(widths), resume_step=resume_step)]
    if settings.name == "wandb":
        loggers.append(WandbTracker(folder, settings, run, hyperparameters))
    elif settings.name == "tensorboard":
        require("tensorboard", "tensorboard")
        loggers.append(TensorBoardTracker(save_dir=folder, name="", version="tensorboard", default_hp_metric=False))
    elif settings.name != "csv":
        raise ConfigError(f"logger={settings.name} is not known; expected csv, wandb or tensorboard")
    failed = True
    try:
        for logger in loggers:
            logger.log_hyperparams(dict(hyperparameters))
        yield loggers
        failed = False
    finally:
        for logger in loggers:
            _close(logger, failed)


def log_end(loggers: Sequence[Logger], end: End) -> None:
    """What a finished run is worth, to the loggers that keep more than losses."""
    for logger in loggers:
        if isinstance(logger, WandbTracker | TensorBoardTracker):
            logger.log_end(end)


def columns(widths: Sequence[str]) -> list[str]:
    """The columns of metrics.csv."""
    return [ITER, "block", "block_name", *(f"loss/{width}" for width in widths), "loss/rounding", "beta", "settled"]


class CsvTracker(Logger):
    """One CSV file, a line per call; a metric without a column gets one, the file being rewritten once for it."""

    def __init__(self, path: Path, header: Sequence[str], *, resume_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.header = list(header)
        self._begin(resume_step)

    @rank_zero_only
    def _begin(self, resume_step: int) -> None:
        if resume_step and self.path.exists():
            self._keep(lambda line: float(line.get(ITER) or 0) < resume_step)
        else:
            self._write([])

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append one line; ``step`` stands for iter where the metrics lack it."""
        line = {ITER: step, **metrics}
        if fresh := [name for name in line if name not in self.header]:
            self.header += fresh
            self._keep(lambda _: True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.header, lineterminator="\n").writerow({k: _plain(v) for k, v in line.items()})

    def _keep(self, wanted: Any) -> None:
        with self.path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.DictReader(file) if None not in line and None not in line.values()]
        self.header += [name for line in lines[:1] for name in line if name not in self.header]
        self._write([line for line in lines if wanted(line)])

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_atomically(self.path, text.getvalue())


class TensorBoardTracker(TensorBoardLogger):
    """Lightning's logger, numbers only (TensorBoard has no axis for names), with one file for all fits of a run."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Scalars against iter."""
        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
        super().log_metrics(numbers, int(numbers.pop(ITER, step or 0)))

    @rank_zero_only
    def log_end(self, end: End) -> None:
        """The figures of every width, behind the last iteration."""
        for name, value in end.summary().items():
            self.experiment.add_scalar(name, value, end.iters)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Lightning closes the file behind each block's fit, and a new one would follow: it is open until `close`."""
        self.experiment.flush()

    @rank_zero_only
    def close(self) -> None:
        """Behind the run."""
        super().finalize("success")


def _close(logger: Logger, failed: bool) -> None:
    if isinstance(logger, WandbTracker):
        logger.close(failed)
    elif isinstance(logger, TensorBoardTracker):
        logger.close()
    logger.finalize("failed" if failed else "success")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value
