"""The tutorial runs as it stands, in an empty folder."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"python": [sys.executable], "ptmq": [sys.executable, "-m", "ptmq_lightning.device.cli"]}


def steps() -> list[list[str]]:
    """The commands and snippets of the page, in order."""
    found = []
    for command, snippet in re.findall(r"^ {4}([^\n]+)$|^```python\n(.*?)^```$", text(), re.MULTILINE | re.DOTALL):
        name, *rest = shlex.split(command) if command else ["python", "-c", snippet]
        rest = [str(ROOT / word) if word == "train.py" else word for word in rest]
        found.append([*COMMANDS[name], *rest])
    return found


def text() -> str:
    return (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_tutorial_has_its_steps() -> None:
    assert len(steps()) >= 9 and {step[1] for step in steps()} >= {str(ROOT / "train.py"), "-c", "-m"}


@pytest.mark.slow
def test_every_step_of_the_tutorial_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for step in steps():
        done = subprocess.run(step, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{step}\n{done.stdout[-500:]}\n{done.stderr[-1500:]}"
    assert list(tmp_path.rglob("table.md"))
    for file in re.findall(r"`(outputs/[^`]+\.html)`", text()):
        assert (tmp_path / file).exists()
