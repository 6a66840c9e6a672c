"""docs/own-network.md works as it stands: its files are saved and its commands run, in order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "own-network.md").read_text(encoding="utf-8")
FILES = ("make_pictures.py", "train_mine.py", "use.py")  # the page's programs, in order; the last has no name there


@pytest.mark.slow
def test_the_page_leads_from_a_training_script_to_names_of_classes(tmp_path: Path) -> None:
    """`pytest -s` prints the minutes from the training script to the last command."""
    for name, text in zip(FILES, re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL), strict=True):
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copy(ROOT / "train.py", tmp_path)
    activate, pictures, *blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    assert activate == ". .venv/bin/activate\n"  # the environment of this test instead
    said = [ran(pictures, tmp_path)]
    started = time.perf_counter()
    said += [ran(block, tmp_path) for block in [*blocks, f"python {FILES[-1]}"]]
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes from {FILES[1]} to the last command")
    *_, used, loaded = said
    assert loaded == "8 circle\n4 circle\n"
    lines = [line for line in used.splitlines() if line.startswith("photos/val/")]
    right = [line.split("/")[2] == line.split(": ")[1].split()[0] for line in lines]
    assert len(right) == 60 and sum(right) > 50
    (found,) = [json.loads(line) for line in used.splitlines() if line.startswith("{")]
    assert found["classes"][0]["name"] == "circle"
    assert (tmp_path / "outputs/mine/model-onnx/export.json").exists()


def ran(block: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}  # on a busy machine threads wait for each other
    done = subprocess.run(["bash", "-ec", block], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_names_the_files_that_it_shows() -> None:
    assert all(f"`{name}`" in PAGE for name in FILES[:2])
    assert "](docs/own-network.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
