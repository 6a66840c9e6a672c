"""One run's folder: started afresh, or continued behind the last block that was finished.

A finished block's tensors are kept in resume/ until the run is complete; what comes before the reconstruction is
made again, which is exact.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_only

from ptmq_lightning.config.schema import Config
from ptmq_lightning.reconstruct.commit import load_block, save_block
from ptmq_lightning.reconstruct.reconstruct import BlockResult
from ptmq_lightning.report.record import read_results, write_atomically
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel

log = logging.getLogger(__name__)

CONFIG, RESULTS, LOG, RESUME = "config.yaml", "results.json", "train.log", "resume"
OURS = (RESULTS, "metrics.csv", "layers.csv", "calibration.json", "finetune.json", "report.html", "model", RESUME,
        "wandb", "tensorboard", CONFIG)  # fmt: skip
NOT_COMPARED = ("resume", "logger", "trainer.threads", "data.workers")  # what changes no tensor


class RunFolder:
    """The folder of one run and what an earlier, killed run of the same command left in it."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    @rank_zero_only
    def open(self) -> None:
        """Write config.yaml; what an earlier run left is replaced, or with ``resume`` compared and kept.

        Raises:
            ConfigError: ``resume``, and the run that was killed had another configuration; or the folder is no run's
                and holds something that a run would replace.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if self.config.resume and (self.path / CONFIG).exists():
            self._require_same()
        elif (self.path / CONFIG).exists():
            self._clear()
        else:
            self._require_free()
        write_atomically(self.path / CONFIG, _text(self.config))

    def finished(self) -> dict[str, Any] | None:
        """The results of a complete run that is to be resumed. Raises ConfigError for another configuration's."""
        if not self.config.resume or not (self.path / RESULTS).exists():
            return None
        self._require_same()
        return read_results(self.path / RESULTS)

    def finished_blocks(self) -> int:
        """How many blocks a killed run that is to be resumed has finished, over all its passes."""
        blocks = itertools.takewhile(lambda index: self._block(index, "json").exists(), itertools.count())
        return sum(1 for _ in blocks) if self.config.resume else 0

    def finished_iters(self) -> int:
        """How many iterations went into them."""
        last = self.finished_blocks() - 1
        return int(json.loads(self._block(last, "json").read_text(encoding="utf-8"))["iters"]) if last >= 0 else 0

    def restore(self, model: MultiBitModel) -> list[BlockResult]:
        """Put the finished blocks of a killed run into the calibrated ``model``; how each of them went, in order."""
        results = []
        for index in range(self.finished_blocks()):
            load_block(model.blocks[index % len(model.blocks)], self._block(index, "safetensors"))
            results.append(BlockResult(**json.loads(self._block(index, "json").read_text(encoding="utf-8"))))
        if results:
            log.info("resume: %d blocks of %d in each pass are finished", len(results), len(model.blocks))
        return results

    @rank_zero_only
    def keep(self, model: MultiBitModel, index: int, result: BlockResult) -> None:
        """Keep a finished block, counted over all passes; the record last: a block without it counts as unfinished."""
        save_block(model.blocks[index % len(model.blocks)], self._block(index, "safetensors"))
        write_atomically(self._block(index, "json"), json.dumps(asdict(result)) + "\n")

    @rank_zero_only
    def close(self) -> None:
        """The run is complete: nothing is left to resume."""
        shutil.rmtree(self.path / RESUME, ignore_errors=True)

    def _block(self, index: int, suffix: str) -> Path:
        return self.path / RESUME / f"block_{index:03d}.{suffix}"

    def _clear(self) -> None:
        unfinished = [*self.path.glob("*.partial"), *self.path.glob(".model.*.part")]  # a kill in the middle of a write
        for target in [*unfinished, *(self.path / name for name in OURS)]:  # config.yaml last: until then it is ours
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
        if (self.path / LOG).exists():
            os.truncate(self.path / LOG, 0)

    def _require_free(self) -> None:
        if held := [name for name in OURS if (self.path / name).exists()]:
            raise ConfigError(
                f"{self.path} is no run's folder (it has no {CONFIG}), but holds {held[0]!r}, which a run would "
                "replace; set hydra.run.dir to a new folder"
            )

    def _require_same(self) -> None:
        before = dict(_flat(yaml.safe_load((self.path / CONFIG).read_text(encoding="utf-8"))))
        now = dict(_flat(yaml.safe_load(_text(self.config))))
        keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        keys = [key for key in keys if key not in NOT_COMPARED and key.split(".")[0] not in NOT_COMPARED]
        if keys:
            shown = ", ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys)
            raise ConfigError(
                f"resume=true, but the run in {self.path} had another configuration: {shown}; give the same command "
                "again, or start afresh without resume"
            )


def _text(config: Config) -> str:
    """What config.yaml holds."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their plain values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
