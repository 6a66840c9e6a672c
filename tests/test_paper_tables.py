"""The experiments that make the paper's tables run from one command, here on random weights and a few pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptmq_lightning.report.record import read_results
from tests.data.pictures import folders

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "trainer=cpu", "recon=smoke", "recon.iters=1", "recon.batch=2", "model.pretrained=false", "data.eval_batch=4",
    "data.calibration_images=4", "data.step_size_images=4",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "pairs"),
    [
        (("experiment=paper_table1", "model=mobilenetv2", "method=ptmq_paper,ptmq"), {"w2a4", "w3a3", "w4a4", "w8a8"}),
        (("experiment=paper_vit", "model=deit_t", "bits=vit"), {"w4a6", "w5a6", "w6a6", "w7a7", "w8a8"}),
    ],
    ids=lambda value: value[0].removeprefix("experiment=") if isinstance(value, tuple) else "",
)
def test_a_table_of_the_paper_is_one_command(command: tuple[str, ...], pairs: set[str], tmp_path: Path) -> None:
    for part, first in (("train", 0), ("val", 100)):
        folders(tmp_path / "images" / part, "ab", 4, first)
    names = ["a", "b", *map(str, range(998))]
    (tmp_path / "images" / "class_map.txt").write_text("".join(f"{name}\n" for name in names))
    run = [sys.executable, ROOT / "train.py", *command, *SMALL, f"data.root={tmp_path / 'images'}"]
    done = subprocess.run([*run, f"hydra.sweep.dir={tmp_path / 'out'}"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    files = list((tmp_path / "out").rglob("results.json"))
    assert len(files) == command[-1].count(",") + 1
    for file in files:
        assert pairs <= {row["config"] for row in read_results(file)["rows"]}
