"""The root folder of a sweep: what was asked for, and how each job went.

ROOT/sweep.json           the command, the swept keys
ROOT/jobs/0003.json       job 3: its overrides, its folder, how it ended; of a failure 0003.log with the whole reason
ROOT/mixer-case1_seed-0/  the run folder of a job
ROOT/table.md, .csv, .json, figure.png, .svg     the answer
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptmq_lightning.runtime.checked import check
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.files import write_atomically
from ptmq_lightning.runtime.sealed import read_object

SWEEP, JOBS, SCHEMA = "sweep.json", "jobs", 1
RUNNING, DONE, THERE, FAILED = "running", "done", "there already", "failed"
FINISHED = (DONE, THERE)
REASON = 1000  # signs of a reason that are noted
_SWEEP: dict[str, Any] = {"schema": int, "command": list, "swept": list}
_JOB: dict[str, Any] = {"number": int, "overrides": list, "folder": str, "state": str, "reason": str}


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Args:
        number: Hydra's, from 0.
        overrides: KEY=VALUE each, swept and fixed ones.
        folder: of the run, relative to the root.
        state: RUNNING (also of a job that was killed), DONE, THERE (finished by an earlier start) or FAILED.
        reason: why it failed, in one line.
    """

    number: int
    overrides: tuple[str, ...]
    folder: str
    state: str = RUNNING
    reason: str = ""

    def chosen(self, keys: Sequence[str]) -> dict[str, str]:
        """What this job has for each swept key, as text."""
        given = dict(split(override) for override in self.overrides)
        return {key: given[key] for key in keys if key in given}


@dataclass(frozen=True)
class Sweep:
    """command: the words of the command that name the sweep.  swept: the keys that have several values."""

    root: Path
    command: tuple[str, ...]
    swept: tuple[str, ...]
    jobs: tuple[Job, ...] = ()

    @property
    def compared(self) -> list[str]:
        """The swept keys but the seed: a line of the table for each of their values."""
        return [key for key in self.swept if key != "seed"]


def split(override: str) -> tuple[str, str]:
    """(key, value) of KEY=VALUE, without the signs in front of the key."""
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def begin(root: Path, command: Sequence[str], swept: Sequence[str]) -> None:
    """Note what a sweep is, in its root. Jobs of an earlier start of the same command stay noted.

    Raises:
        ConfigError: the root holds another sweep.
    """
    noted = {"schema": SCHEMA, "command": list(command), "swept": list(swept)}
    if (root / SWEEP).exists() and (before := _read(root / SWEEP, _SWEEP))["command"] != noted["command"]:
        raise ConfigError(
            f"{root} holds another sweep ({' '.join(before['command'])}); set hydra.sweep.dir to another folder"
        )
    write_atomically(root / SWEEP, json.dumps(noted, indent=1) + "\n")


def note(root: Path, job: Job, trace: str = "") -> None:
    """Write how a job goes; of a failure also its whole reason, beside."""
    write_atomically(root / JOBS / f"{job.number:04d}.json", json.dumps(asdict(job)) + "\n")
    if trace:
        write_atomically(root / JOBS / f"{job.number:04d}.log", trace)
    else:
        (root / JOBS / f"{job.number:04d}.log").unlink(missing_ok=True)


def read_sweep(root: Path) -> Sweep | None:
    """The sweep of which `root` is the root, with its jobs by number; None where it is none."""
    if not (root / SWEEP).exists():
        return None
    noted = _read(root / SWEEP, _SWEEP)
    jobs = [_read(file, _JOB) for file in sorted((root / JOBS).glob("*.json"))]
    return Sweep(
        root,
        tuple(noted["command"]),
        tuple(noted["swept"]),
        tuple(Job(**{**job, "overrides": tuple(job["overrides"])}) for job in jobs),
    )


def swept_keys(root: Path) -> tuple[str, ...] | None:
    """The keys that a sweep varies; None where `root` is no sweep's."""
    return tuple(_read(root / SWEEP, _SWEEP)["swept"]) if (root / SWEEP).exists() else None


def sweep_of(run: Path) -> Sweep | None:
    """The sweep that a run folder belongs to."""
    return next((sweep for place in run.parents[:2] if (sweep := read_sweep(place)) is not None), None)


def _read(path: Path, shape: Mapping[str, Any]) -> dict[str, Any]:
    try:
        found = read_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); expected what a sweep wrote; remove it") from error
    check(found, dict(shape), str(path))
    return found
