"""Every second of a run belongs to a stage."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ptmq_lightning.compose import stages
from ptmq_lightning.compose.stages import Stages
from ptmq_lightning.report.record import STAGES

ROOT = Path(__file__).resolve().parents[2]


def test_what_passes_between_two_stages_counts_for_the_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 101.0, 109.0])
    monkeypatch.setattr(stages, "seconds_to_here", lambda: 7.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    made = Stages()
    with made.stage("build"):
        pass
    made.end("data")
    assert made.seconds == {"start": 7.0, "build": 1.0, "data": 8.0}


def test_the_start_of_a_process_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "_told", False)
    assert stages.seconds_to_here() > 0
    assert stages.seconds_to_here() == 0


@pytest.mark.slow
def test_the_stages_of_the_run_on_digits_add_up_to_its_wall_time(tmp_path: Path) -> None:
    started = time.monotonic()
    command = [sys.executable, "train.py", f"hydra.run.dir={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True)
    wall = time.monotonic() - started
    seconds = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["seconds"]
    assert tuple(seconds) == STAGES
    ours = sum(seconds.values())
    # The rest: the seal of the folder, and Python's own end, seconds on a loaded machine, which no record can hold.
    assert ours <= 1.02 * wall and wall - ours < 0.02 * wall + 3
