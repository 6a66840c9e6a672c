"""A run in W&B: its losses as panels, what it came to as summary, table, chart and artifact.

loss/w4a4                over iter, the iterations of the whole run
losses_03_layer1-0/w4a4  over block_iter, the iterations of that block: a section for each block
fit/settled, fit/beta, fit/rounding    over iter
step_sizes/a4            over block: learned over calibrated, geometric mean of the block's
top1/w4a4, drop/w4a4, seconds/whole, ...   summary
"""

from __future__ import annotations

import hashlib
import logging
import re
import socket
import urllib.parse
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ptmq_lightning.report.end import End
from ptmq_lightning.report.keys import LoggerKeys

ITER, BLOCK_ITER = "iter", "block_iter"
GROUP = 128  # signs that W&B takes
TAGGED = ("model", "data", "method", "mixer", "loss")  # groups whose choice is a tag

log = logging.getLogger(__name__)


class WandbTracker(WandbLogger):
    """Lightning's logger with axes of its own; one W&B run per run folder, also after a resume.

    Args:
        folder: where its files are kept.
        run: the run's own folder, which names it and stays the same when it is resumed.
        hyperparameters: the run's configuration, nested plain values.
    """

    def __init__(self, folder: Path, settings: LoggerKeys, run: Path, hyperparameters: Mapping[str, Any]) -> None:
        self.id = hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]
        super().__init__(
            name=settings.run_name or run.name,
            save_dir=folder,
            id=self.id,
            project=settings.project,
            entity=settings.entity,
            group=settings.group or run.parent.name[-GROUP:],
            job_type=_name_of(hyperparameters.get("method")) or "run",
            tags=list(dict.fromkeys([*settings.tags, *_choices(hyperparameters)])),
            mode=usable_mode(settings.mode),
            settings=_quiet(),
        )
        self.settings, self.lost = settings, False
        self._block: Any = None
        self._block_start = 0

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration; and the axes."""
        super().log_hyperparams(params)
        run = self.experiment
        run.define_metric(ITER)
        run.define_metric("*", step_metric=ITER)
        run.define_metric(BLOCK_ITER)
        run.define_metric("losses_*", step_metric=BLOCK_ITER)
        run.define_metric("block")
        run.define_metric("step_sizes/*", step_metric="block")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One record: over the run's iterations, and over those of its block."""
        record = {ITER: step, **metrics}
        losses = {name: value for name, value in record.items() if name.startswith("loss/")}
        rounding = losses.pop("loss/rounding", None)
        block, name = record.pop("block", None), record.pop("block_name", "")
        rest = {name: value for name, value in record.items() if not name.startswith("loss/") and name != ITER}
        sent = {ITER: record[ITER], **losses, **{f"fit/{key}": value for key, value in rest.items()}}
        if rounding is not None:
            sent["fit/rounding"] = rounding
        if block is not None:
            section = f"losses_{int(block) + 1:02d}_{re.sub(r'[^A-Za-z0-9_]+', '-', str(name))}"
            if self._block != section:
                self._block, self._block_start = section, int(record[ITER] or 0)
            sent[BLOCK_ITER] = int(record[ITER] or 0) - self._block_start
            sent |= {f"{section}/{key.removeprefix('loss/')}": value for key, value in losses.items()}
        self.attempt(lambda: self.experiment.log(sent))

    @rank_zero_only
    def log_block(self, figures: Mapping[str, float]) -> None:
        """Figures of a finished block, over `block`."""
        self.attempt(lambda: self.experiment.log(dict(figures)))

    @rank_zero_only
    def log_end(self, end: End) -> None:
        """Summary, table and chart of every width, the page, the model."""
        self.attempt(lambda: self.experiment.summary.update(end.summary()))
        self.attempt(lambda: self.experiment.log({ITER: end.iters, **dict(_shown(end))}))
        if self.settings.log_model and (end.folder / "model" / "manifest.json").exists():
            self.attempt(lambda: self._log_artifact(end))

    def _log_artifact(self, end: End) -> None:
        import wandb

        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{end.results['model']}-{self.id}")
        model = wandb.Artifact(name, type="model", description="Multi-bit model", metadata=end.summary())
        model.add_dir(str(end.folder / "model"))
        if end.card is not None:
            with model.new_file("README.md", encoding="utf-8") as file:
                file.write(end.card(end.folder / "model", name))
        self.experiment.log_artifact(model)

    def close(self, failed: bool) -> None:
        """Behind the run."""
        if self._experiment is not None:
            run = self.experiment
            self.attempt(lambda: run.finish(exit_code=int(failed)))

    def attempt(self, send: Callable[[], Any]) -> None:
        """Send something to W&B's service; where that died, the run goes on and is recorded in metrics.csv alone."""
        if self.lost:
            return
        try:
            send()
        except Exception as error:  # of sockets, of the service, of wandb itself
            self.lost = True
            log.warning("W&B does not answer any more (%s); the run goes on, metrics.csv has everything", error)


def _quiet() -> Any:
    """No farewell of W&B's own: it names a place that the finished run has left. The end of a run, or of a sweep,
    names the new one."""
    import wandb

    return wandb.Settings(quiet=True)


def _shown(end: End) -> Iterator[tuple[str, Any]]:
    import wandb

    columns, rows = end.table()
    table = wandb.Table(columns=[*columns], data=rows)
    yield "widths", table
    title = f"top-1 per width, {end.results['model']}"
    yield "top1_per_width", wandb.plot.bar(table, "width", "top1", title=title)
    yield "drop_per_width", wandb.plot.bar(table, "width", "drop", title="points of top-1 below float")
    if (page := end.folder / "report.html").exists():
        yield "report", wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    for picture in sorted(end.folder.glob("*.png")):
        yield picture.stem, wandb.Image(str(picture))


def _name_of(choice: Any) -> str:
    return str(choice.get("name", "")) if isinstance(choice, Mapping) else ""


def _choices(hyperparameters: Mapping[str, Any]) -> list[str]:
    return [name for group in TAGGED if (name := _name_of(hyperparameters.get(group))) and len(name) <= 64]


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
