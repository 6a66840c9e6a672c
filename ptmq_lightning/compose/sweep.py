"""A sweep (-m): a root folder of its own, runs that go on where they were stopped, and one answer in the end.

Hydra makes the list of jobs and a launcher runs them, in turn or side by side, here or elsewhere. Each notes in the
root how it went (report/sweeps.py), so that any launcher whose jobs see the same file system ends in the same table.
A job that fails is noted and leaves the others alone: Hydra would drop the whole sweep for it.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from ptmq_lightning.compose import console
from ptmq_lightning.compose.words import folder_name, run_name
from ptmq_lightning.report import sweeps
from ptmq_lightning.report.answer import RESULTS, of_sweep, told, write_answer
from ptmq_lightning.report.record import read_results
from ptmq_lightning.report.sweeps import DONE, FAILED, THERE, Job
from ptmq_lightning.runtime.errors import ConfigError, PTMQError

LOCK = ".ptmq-sweep"
SHOWN = 6  # widths in the line of a finished job
log = logging.getLogger(__name__)

_held: list[FileLock] = []  # not in the callback: launchers copy that into their jobs' processes


class SweepAnswer(Callback):
    """What Hydra calls before the first job and after the last, in the process that was started."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        with _leaving():
            root = Path(config.hydra.sweep.dir)
            root.mkdir(parents=True, exist_ok=True)
            _hold(root)
            sweeps.begin(root, _command(config.hydra.overrides.task, config.hydra.overrides.hydra), _swept(config))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        with _leaving():
            code = finish(Path(config.hydra.sweep.dir))
            let_go()
            if code:
                sys.exit(code)  # an Exception would be a warning of Hydra's


def finish(root: Path) -> int:
    """Print the answer of a sweep and leave its files in the root; 1 where a job failed, else 0."""
    sweep = sweeps.read_sweep(root)
    assert sweep is not None
    found = of_sweep(sweep)
    if found is not None:
        write_answer(root, found, sweep.jobs)
    print(f"\n{told(sweep, found)}", end="", flush=True)
    return int(any(job.state == FAILED for job in sweep.jobs))


def under_way() -> bool:
    """Whether this process runs a sweep."""
    return bool(_held)


def let_go() -> None:
    """Leave the sweep's root to others."""
    while _held:
        _held.pop().release()


def is_job() -> bool:
    """Whether what runs is one of a sweep's jobs."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def resumes(overrides: Sequence[str]) -> bool:
    """A sweep's runs go on where they were stopped unless the command says otherwise."""
    return not any(sweeps.split(override)[0] == "resume" for override in overrides)


def run_job(run: Callable[[], float]) -> float:
    """One job of a sweep, noted in its root; nan where it failed: the other jobs go on."""
    hydra = HydraConfig.get()
    root, folder = Path(hydra.sweep.dir), Path(hydra.runtime.output_dir)
    job = Job(hydra.job.num, tuple(hydra.overrides.task), folder.resolve().relative_to(root.resolve()).as_posix())
    sweeps.note(root, job)
    before, started = _made(folder), time.monotonic()
    try:
        with console.of_job():
            value = run()
    except Exception as error:  # whatever it is: it is this job's alone
        reason = str(error) if isinstance(error, PTMQError) else f"{type(error).__name__}: {error}"
        reason = " ".join(reason.split())[: sweeps.REASON]
        log.error("failed: %s", reason)
        sweeps.note(root, replace(job, state=FAILED, reason=reason), traceback.format_exc())
        return math.nan
    there = before is not None and before == _made(folder)
    sweeps.note(root, replace(job, state=THERE if there else DONE))
    console.tell(log, f"{'there already' if there else f'done in {time.monotonic() - started:.0f} s'}{_top1(folder)}")
    return value


def _top1(folder: Path) -> str:
    if not (folder / RESULTS).exists():  # an export alone
        return ""
    rows = read_results(folder / RESULTS)["rows"]
    told = [f"{row['config']} {row['top1']:.1f}" for row in rows[:SHOWN]]
    return ", top-1: " + "  ".join([*told, "..."] if len(rows) > SHOWN else told)


def sweep_name(choices: Mapping[str, Any], task: Sequence[str], hydra: Sequence[str]) -> str:
    """The root's name below outputs/sweep: the experiment's or the model's, then the rest of the command. The launcher
    and ``resume`` do not count: a killed sweep may be continued by another one."""
    return run_name(choices, _command(task, hydra))


def cell_name(root: str, overrides: Sequence[str]) -> str:
    """A job's folder in the root: the values of the keys that are swept."""
    swept = sweeps.swept_keys(Path(root))
    return folder_name([part for part in overrides if swept is None or sweeps.split(part)[0] in swept])


def _command(task: Sequence[str], hydra: Sequence[str]) -> list[str]:
    given = [part for part in task if sweeps.split(part)[0] != "resume"]
    return [*given, *(part for part in hydra if part.startswith("hydra.sweeper."))]


def _swept(config: DictConfig) -> list[str]:
    """The keys with several values, of the sweeper's parameters and of the command."""
    params = config.hydra.sweeper.get("params") or {}
    given = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    parsed = OverridesParser.create().parse_overrides(given)
    several = {sweeps.split(override.input_line or "")[0]: override.is_sweep_override() for override in parsed}
    return [key for key, found in several.items() if found]  # the last one counts, as for Hydra


def _made(folder: Path) -> int | None:
    """When the results in a run's folder were written."""
    results = folder / RESULTS
    return results.stat().st_mtime_ns if results.exists() else None


def _hold(root: Path) -> None:
    lock = FileLock(root / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(
            f"another process runs the sweep in {root}; wait for it, stop it, or set hydra.sweep.dir to another folder"
        ) from None
    _held.append(lock)


@contextmanager
def _leaving() -> Iterator[None]:
    """Hydra makes a warning of what a callback raises; an error of ours ends the command."""
    try:
        yield
    except PTMQError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
