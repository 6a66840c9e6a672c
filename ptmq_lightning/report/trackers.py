"""Where a run's metrics go: metrics.csv always, W&B or TensorBoard beside it.

metrics.csv is the record: one file for all blocks, flushed line by line, continued by a resumed run. Lightning's own
CSVLogger keeps a folder per version and deletes what it finds there, which a fit per block and a resume do not survive.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import socket
import urllib.parse
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ptmq_lightning.report.keys import LoggerKeys
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require
from ptmq_lightning.runtime.files import write_atomically

ITER = "iter"

log = logging.getLogger(__name__)


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
        loggers.append(WandbTracker(folder, settings, run))
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


def log_summary(loggers: Sequence[Logger], figures: Mapping[str, float]) -> None:
    """Figures of the finished run, to the logger that keeps a summary of runs."""
    for logger in loggers:
        if isinstance(logger, WandbTracker):
            run = logger.experiment
            logger.attempt(lambda run=run: run.summary.update(dict(figures)))  # type: ignore[misc]


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


class WandbTracker(WandbLogger):
    """Lightning's logger with every metric against iter; one W&B run per run folder, also after a resume."""

    def __init__(self, folder: Path, settings: LoggerKeys, run: Path) -> None:
        identity = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        super().__init__(
            name=settings.run_name or run.name,
            save_dir=folder,
            id=identity,
            project=settings.project,
            entity=settings.entity,
            group=settings.group or run.parent.name,
            tags=list(settings.tags),
            mode=usable_mode(settings.mode),
        )
        self.lost = False

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration; and iter as the axis of all metrics."""
        super().log_hyperparams(params)
        self.experiment.define_metric(ITER)
        self.experiment.define_metric("*", step_metric=ITER)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One record, without a second step beside iter."""
        self.attempt(lambda: self.experiment.log({ITER: step, **metrics}))

    def attempt(self, send: Callable[[], Any]) -> None:
        """Send something to W&B's service; where that died, the run goes on and is recorded in metrics.csv alone."""
        if self.lost:
            return
        try:
            send()
        except Exception as error:  # of sockets, of the service, of wandb itself
            self.lost = True
            log.warning("W&B does not answer any more (%s); the run goes on, metrics.csv has everything", error)


def usable_mode(mode: str) -> str:
    """ "online" where W&B has a key and answers, else "offline", with a line that says why; other modes as they are."""
    if mode != "online":
        return mode
    import wandb

    if not wandb.login(prompt=False):
        why = "no API key is set (wandb login)"
    elif not _answers(wandb.Settings().base_url):
        why = "its server does not answer"
    else:
        return mode
    log.warning("W&B: %s; the run is kept offline in its folder, and `wandb sync` sends it later", why)
    return "offline"


def _answers(address: str) -> bool:
    parts = urllib.parse.urlparse(address)
    if urllib.request.getproxies():
        return True  # only the proxy knows
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


class TensorBoardTracker(TensorBoardLogger):
    """Lightning's logger, numbers only: TensorBoard has no axis for names."""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Scalars against iter."""
        numbers = {name: float(value) for name, value in metrics.items() if not isinstance(value, str)}
        super().log_metrics(numbers, int(numbers.pop(ITER, step or 0)))


def _close(logger: Logger, failed: bool) -> None:
    if isinstance(logger, WandbTracker) and logger._experiment is not None:
        run = logger.experiment
        logger.attempt(lambda: run.finish(exit_code=int(failed)))
    logger.finalize("failed" if failed else "success")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.generic)) else value
