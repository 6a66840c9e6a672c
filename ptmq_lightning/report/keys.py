"""The keys of a run's loggers, without the libraries that log."""

from __future__ import annotations

from dataclasses import dataclass

from ptmq_lightning.runtime.keys import key

OFFLINE = "wandb/offline-run-*"  # in a run's folder: what `wandb sync` sends later


@dataclass(frozen=True)
class LoggerKeys:
    name: str = key(help="besides metrics.csv", choices=("csv", "wandb", "tensorboard"))
    mode: str = key("online", "of wandb", choices=("online", "offline", "disabled"))
    project: str = key("ptmq", "of wandb")
    entity: str | None = key(None, "of wandb")
    group: str | None = key(None, "of wandb; null: the runs of one sweep together")
    run_name: str | None = key(None, "of wandb; null: the run folder's name")
    tags: tuple[str, ...] = key((), "of wandb")
    log_model: bool = key(True, "of wandb: the model as an artifact")
