"""The benchmark of allocations takes a finished run's folder, and its tables and that of whole fronts follow from the
results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import allocation, fronts
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.compose.pipeline import run

NEAREST = [
    "model.pretrained=false", "rounding=nearest", "bits.groups=[[w3a3,w4a4],[w8a8]]", "bits.extra=[w2a4]",
    "bits.evaluate=[w4a4]", "data.val_images=30", "data.step_size_images=16", "data.calibration_images=16", "seed=3",
]  # fmt: skip


@pytest.mark.parametrize("benchmark", [allocation, fronts], ids=["allocation", "fronts"])
def test_the_table_follows_from_the_results(benchmark: Any) -> None:
    found = json.loads(benchmark.FILE.read_text(encoding="utf-8"))
    assert benchmark.FILE.with_suffix(".md").read_text(encoding="utf-8") == benchmark.table(found)


def test_a_finished_run_is_measured_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(configuration(NEAREST), tmp_path / "run")
    cell = allocation.Cell(tmp_path / "run", images=8, judges=20, swap_seconds=0.2)
    counts = {"seed": 3, "iters": configuration(NEAREST).recon.iters, "decide": 8, "judge": 20}
    assert cell.run == counts | {"model": cell.run["model"]} and len(cell.run["model"]) == 8
    assert len(cell.images) == 8 and sum(map(len, cell.judge.images)) == 20
    monkeypatch.setattr(allocation, "FILE", tmp_path / "found.json")
    monkeypatch.setattr(allocation, "AVERAGES", (4.0,))
    monkeypatch.setattr(allocation, "DRAWS", 3)
    found: dict[str, Any] = {"digits/3": {"run": cell.run}}
    allocation.measure(cell, ("milp", "milp or uniform", "milp + swaps"), found["digits/3"], found)
    assert json.loads(allocation.FILE.read_text()) == json.loads(json.dumps(found))
    assert found["digits/3"]["milp 4.0"]["w_bits"] <= 4 and "greedy 4.0" not in found["digits/3"]
    text = allocation.table(found)
    assert "8 calibration images decide, 20 evaluation images judge" in text and "| 4 | milp + swaps |" in text


def test_fewer_images_are_counted_up_to_the_commands_own_numbers() -> None:
    row = {
        "layers": 3, "pairs": 2, "assignments": 6, "different": 3, "images": {"sensitivity": 32, "answers": 64},
        "seconds": {"sensitivity": 60.0, "answers": 30.0},
    }  # fmt: skip
    assert fronts.SENSITIVITY == 64 and fronts.COUNT == 256
    assert "| 2.0 | 4.0 | 6.0 | 32, 64 | 3 |" in fronts.table({"small": row})
