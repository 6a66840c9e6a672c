"""trainer=ddp: several processes make one model together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    rows = {}
    for name, trainer in {"one": [], "two": ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]}.items():
        options = ["recon.iters=40", "data.calibration_images=128", f"hydra.run.dir={tmp_path / name}"]
        command = [sys.executable, str(ROOT / "train.py"), *options, *trainer]
        subprocess.run(command, cwd=tmp_path, env=os.environ, check=True, timeout=600)
        results = json.loads((tmp_path / name / "results.json").read_text())
        rows[name] = {row["config"]: row["logit_error"] for row in results["rows"]}
    # the same batches and widths, other masks for half of the rows, sums in another order
    assert all(0.8 < rows["two"][width] / rows["one"][width] < 1.25 for width in ("w3a3", "w4a4", "w8a8"))
