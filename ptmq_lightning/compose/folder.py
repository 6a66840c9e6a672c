"""One run's folder: what an earlier run left in it stays as it is until this one is complete.

    DIR/.ptmq-run       the mark of a run's folder; whoever runs in it holds its lock
    DIR/unfinished/     everything the run writes, while it runs and after it was killed
    DIR/complete/       the same, sealed by one rename; its items then take the places of the earlier run's
    DIR/...             the latest complete run

A finished block's tensors are kept in unfinished/resume/ until the run is complete; what comes before the
reconstruction is made again, which is exact.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError, safe_open

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.manifest import MANIFEST
from ptmq_lightning.config.declared import completed
from ptmq_lightning.config.schema import Config
from ptmq_lightning.reconstruction.commit import load_block, save_block
from ptmq_lightning.reconstruction.reconstruct import BlockResult
from ptmq_lightning.report.record import read_results
from ptmq_lightning.runtime.errors import ArtifactError, ConfigError
from ptmq_lightning.runtime.files import remove_unfinished, write_atomically
from ptmq_lightning.runtime.keys import flat
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.sealed import read_object

log = logging.getLogger(__name__)

MARK, WORK, COMPLETE, CONTENTS = ".ptmq-run", "unfinished", "complete", "contents.json"
CONFIG, RESULTS, LOG, RESUME, INPUTS = "config.yaml", "results.json", "train.log", "resume", "inputs.json"
OURS = (
    RESULTS, "metrics.csv", "layers.csv", "sensitivity.csv", "sensitivity.png", "calibration.json", "finetune.json",
    "details.json", "report.html", "model", INPUTS, "wandb", "tensorboard", "model-onnx", "model-openvino", CONFIG, LOG,
)  # fmt: skip
NOT_COMPARED = ("resume", "logger", "trainer.threads", "trainer.cache", "data.workers")  # what changes no tensor


class RunFolder:
    """The folder of one run, held while the block of a `with` lasts.

    Raises ConfigError on entering: another process runs in it, or it is no run's folder and holds something that a run
    would replace.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = Path(path), config
        self.work = self.path / WORK
        self._lock = FileLock(self.path / MARK, timeout=0)
        self._log: logging.Handler | None = None

    def __enter__(self) -> RunFolder:
        self._enter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._log is not None:
            if error is not None:
                text = f"{kind.__name__ if kind else ''}: {error}"
                self._log.handle(logging.LogRecord(__name__, logging.ERROR, "", 0, text, None, None))
            logging.getLogger().removeHandler(self._log)
            self._log.close()
            self._log = None
        self._lock.release()

    @rank_zero_only
    def _enter(self) -> None:
        if not (self.path / MARK).exists():
            self._require_free()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another process runs in {self.path}; expected a folder that nobody writes to. Wait for it, stop it, "
                "or set hydra.run.dir to another folder"
            ) from None
        self._exchange()

    @rank_zero_only
    def open(self) -> None:
        """Begin the run in unfinished/: afresh, or with ``resume`` behind what a killed run left there.

        Raises ConfigError: ``resume``, and the run that was killed had another configuration.
        """
        if self.config.resume and (self.work / CONFIG).exists():
            self._require_same(self.work)
            remove_unfinished(self.work)
            self._drop_damaged()
        elif self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir(exist_ok=True)
        write_atomically(self.work / CONFIG, _text(self.config))
        self._log = _LogFile(self.work / LOG, encoding="utf-8")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logging.getLogger().addHandler(self._log)

    def _drop_damaged(self) -> None:
        """A block whose files cannot be read is fitted again, and so are those behind it, which saw its outputs."""
        for index in range(self.finished_blocks()):
            try:
                BlockResult(**json.loads(self._block(index, "json").read_text(encoding="utf-8")))
                with safe_open(self._block(index, "safetensors"), "np") as file:  # compares length and header
                    file.keys()
            except (OSError, ValueError, TypeError, SafetensorError) as error:
                log.warning(
                    "resume: block %d in %s cannot be read (%s); it is fitted again, with those behind it",
                    index + 1, self.work / RESUME, type(error).__name__,
                )  # fmt: skip
                for later in range(index, self.finished_blocks()):
                    self._block(later, "json").unlink()
                return

    def finished(self) -> dict[str, Any] | None:
        """The results of a complete run that is to be resumed, where its model can be loaded.

        Raises ConfigError for another configuration's.
        """
        if not self.config.resume or not (self.path / RESULTS).exists() or self.work.exists():
            return None
        self._require_same(self.path)
        if not self._model_is_whole():
            return None
        return read_results(self.path / RESULTS)

    def _model_is_whole(self) -> bool:
        if self.config.finetune.name != "none":  # tensors for comparison, no artifact
            return (self.path / "model").is_dir() and not (self.path / "model" / MANIFEST).exists()
        try:
            artifact.load(self.path / "model")
        except ArtifactError as error:
            log.warning("resume: the run in %s was complete, but %s It is run again", self.path, error)
            return False
        return True

    def require_same_inputs(self, found: Mapping[str, str]) -> None:
        """Compare what the finished blocks were made of with what is there now, or note it for a later resume.

        Args:
            found: hashes of the float weights and of the drawn images, versions of what computes.

        Raises:
            ConfigError: blocks are finished, and something else lies under the same names now.
        """
        kept = self.work / INPUTS
        if self.finished_blocks() and kept.exists():
            before = self._inputs(kept)
            if changed := [name for name in found if before.get(name) != found[name]]:
                raise ConfigError(
                    f"resume=true, but {', '.join(changed)} changed since the run in {self.path} was stopped (was "
                    f"{before.get(changed[0])}, now {found[changed[0]]}); put them back, or start afresh: resume=false"
                )
        if getattr(rank_zero_only, "rank", 0) == 0:
            write_atomically(kept, json.dumps(dict(found), indent=1) + "\n")

    def _inputs(self, kept: Path) -> dict[str, Any]:
        try:
            return read_object(kept)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"resume=true, but {kept} cannot be read ({error}); expected what the stopped run was made of. Start "
                "afresh with resume=false"
            ) from error

    def finished_blocks(self) -> int:
        """How many blocks a killed run that is to be resumed has finished, over all its passes."""
        blocks = itertools.takewhile(lambda index: self._block(index, "json").exists(), itertools.count())
        return sum(1 for _ in blocks) if self.config.resume else 0

    def finished_iters(self) -> int:
        """How many iterations went into them."""
        last = self.finished_blocks() - 1
        return int(json.loads(self._block(last, "json").read_text(encoding="utf-8"))["iters"]) if last >= 0 else 0

    def finished_seconds(self) -> float:
        """How long they took, in the runs that were stopped."""
        files = (self._block(index, "json") for index in range(self.finished_blocks()))
        return float(sum(json.loads(file.read_text(encoding="utf-8"))["seconds"] for file in files))

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
        """The run is complete: it takes the place of the earlier one. A kill on the way is made up for by the next
        run in this folder."""
        shutil.rmtree(self.work / RESUME, ignore_errors=True)
        names = sorted(item.name for item in self.work.iterdir())
        write_atomically(self.work / CONTENTS, json.dumps(names))
        self.work.rename(self.path / COMPLETE)
        self._exchange()

    def _exchange(self) -> None:
        """Give what stands in complete/ its places; every step may be repeated."""
        complete = self.path / COMPLETE
        if not complete.exists():
            return
        names = json.loads((complete / CONTENTS).read_text(encoding="utf-8"))
        for name in dict.fromkeys([*OURS, *names]):
            if name not in names or (complete / name).exists():
                _remove(self.path / name)
            if (complete / name).exists():
                (complete / name).rename(self.path / name)
        shutil.rmtree(complete)

    def _block(self, index: int, suffix: str) -> Path:
        return self.work / RESUME / f"block_{index:03d}.{suffix}"

    def _require_free(self) -> None:
        if held := [name for name in (*OURS, WORK, COMPLETE) if (self.path / name).exists()]:
            raise ConfigError(
                f"{self.path} is no run's folder (it has no {MARK}), but holds {held[0]!r}, which a run would "
                "replace; set hydra.run.dir to a new folder"
            )

    def _require_same(self, place: Path) -> None:
        try:
            kept = yaml.safe_load((place / CONFIG).read_text(encoding="utf-8"))
            before = dict(flat(completed(Config, kept)))
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
            raise ConfigError(
                f"resume=true, but {place / CONFIG} cannot be read ({type(error).__name__}); expected the "
                "configuration of the run that was stopped. Start afresh with resume=false"
            ) from error
        now = dict(flat(yaml.safe_load(_text(self.config))))
        keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        keys = [key for key in keys if key not in NOT_COMPARED and key.split(".")[0] not in NOT_COMPARED]
        if keys:
            shown = ", ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in keys)
            raise ConfigError(
                f"resume=true, but the run in {self.path} had another configuration: {shown}; give the same command "
                "again, or start afresh with resume=false"
            )


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk ends a run where results are written, not where it speaks of them."""


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def _text(config: Config) -> str:
    """What config.yaml holds."""
    return yaml.safe_dump(asdict(config), sort_keys=False)
