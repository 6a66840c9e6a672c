"""The accuracy benchmark asks for the right runs and makes its table of what they left behind."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.report.record import SCHEMA, STAGES

ROOT = Path(__file__).resolve().parents[1]
STEM = "accuracy_cifar_resnet20_recon.iters=9"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    spec = importlib.util.spec_from_file_location("accuracy_benchmark", ROOT / "benchmarks" / "accuracy.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTMQ_DATA", "folder")


def options(tmp_path: Path, **changes: Any) -> argparse.Namespace:
    asked = {
        "experiment": "cifar_resnet20", "methods": ["rtn", "qdrop", "ptmq+rounding=ste"], "bits": ["w3a3", "w4a4"],
        "seeds": [0, 1], "set": ["recon.iters=9"], "work": tmp_path / "work", "results": tmp_path / "results",
        "only_table": False,
    }  # fmt: skip
    return argparse.Namespace(**asked | changes)


def finish(
    cell: Any, work: Path, widths: dict[str, float], *, seconds: float, labels: int = 0, meaning: str = ""
) -> None:
    """What a run of the cell would have left. widths: name -> top-1. meaning: of its command then, if not now's."""
    benchmark = sys.modules["accuracy_benchmark"]
    folder = cell.folder(work)
    folder.mkdir(parents=True)
    rows = [
        {"config": width, "w_bits": 3.0, "a_bits": 3.0, "top1": top1, "top5": None, "agreement": top1 + 1,
         "sqnr_db": 9.0, "logit_error": 1 / top1, "size_bytes": 10, "bit_ops": 10}
        for width, top1 in widths.items()
    ]  # fmt: skip
    results = {
        "schema": SCHEMA, "model": "m", "data": "d", "method": cell.label, "seed": cell.seed, "versions": {},
        "calibration_images": 64, "evaluation_images": 100, "fp": {"top1": 91.5, "top5": None},
        "seconds": {**dict.fromkeys(STAGES, 0.0), "calibrate": 1.0, "reconstruct": seconds}, "peak_memory_bytes": 2**20,
        "rows": rows,
    }  # fmt: skip
    note = {
        "experiment": cell.experiment, "settings": cell.settings, "method": cell.label, "bits": cell.bits,
        "seed": cell.seed, "command": " ".join(["python", "train.py", *cell.overrides()]), "cpu_seconds": seconds + 2,
    }  # fmt: skip
    note["meaning"] = meaning or benchmark.meaning(note)
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "cell.json").write_text(json.dumps(note))
    if labels:
        (folder / "finetune.json").write_text(json.dumps({"labels": labels}))


def test_a_single_pair_method_has_a_run_per_width_the_others_one_for_all(benchmark: Any, tmp_path: Path) -> None:
    asked = [(cell.label, cell.bits, cell.seed) for cell in benchmark.cells(options(tmp_path, seeds=[3]))]
    assert asked == [("rtn", None, 3), ("qdrop", "w3a3", 3), ("qdrop", "w4a4", 3), ("ptmq+rounding=ste", None, 3)]


def test_a_run_is_the_methods_command_with_its_own_changes_last(benchmark: Any, tmp_path: Path) -> None:
    cells = benchmark.cells(options(tmp_path, seeds=[1]))
    assert cells[1].overrides() == ["experiment=cifar_resnet20", "method=qdrop", "bits=w3a3", "recon.iters=9", "seed=1"]
    assert cells[3].overrides() == [
        "experiment=cifar_resnet20", "method=ptmq", "recon.iters=9", "rounding=ste", "seed=1",
    ]  # fmt: skip
    assert len({cell.folder(tmp_path) for cell in benchmark.cells(options(tmp_path))}) == 8


def test_what_is_done_is_not_run_again(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = benchmark.cells(options(tmp_path))[0]
    finish(cell, tmp_path, {"w3a3": 60.0}, seconds=0.0)
    monkeypatch.setattr(benchmark.subprocess, "Popen", None)
    config = asdict(configuration(cell.overrides()))
    (cell.folder(tmp_path) / ".ptmq-run").touch()  # a run was here
    (cell.folder(tmp_path) / "config.yaml").write_text(yaml.safe_dump(config))
    assert cell.run(tmp_path) is None
    config["recon"]["iters"] = 8
    (cell.folder(tmp_path) / "config.yaml").write_text(yaml.safe_dump(config))
    told = cell.run(tmp_path)
    assert told is not None and "recon.iters" in told  # of another configuration: not mixed in without a word


def test_the_table_has_means_spreads_and_both_costs(benchmark: Any, tmp_path: Path) -> None:
    asked = options(tmp_path)
    for cell in benchmark.cells(asked):
        top1 = 80.0 + 2 * cell.seed
        widths = {cell.bits: top1} if cell.bits else {"w3a3": top1, "w4a4": top1, "w8a8": 91.0}
        finish(cell, asked.work, widths, seconds=30.0 if cell.bits else 45.0)
    benchmark.write(asked)
    record = json.loads((asked.results / f"{STEM}.json").read_text())
    rows = {(row["method"], row["bits"]): row for row in record["rows"]}
    assert set(rows) == {(m, b) for m in asked.methods for b in asked.bits}  # w8a8 was not asked for
    qdrop = rows["qdrop", "w3a3"]
    assert (qdrop["top1_mean"], qdrop["top1_std"], qdrop["runs"]) == (81.0, pytest.approx(2**0.5), 2)
    costs = {row["method"]: row for row in record["costs"]}
    assert (costs["qdrop"]["runs_for_all_widths"], costs["ptmq+rounding=ste"]["runs_for_all_widths"]) == (2, 1)
    assert (costs["qdrop"]["seconds_total"], costs["qdrop"]["seconds_per_width"]) == (62.0, 31.0)
    ptmq = costs["ptmq+rounding=ste"]  # its run gives three widths
    assert (ptmq["seconds_total"], ptmq["widths"], ptmq["seconds_per_width"]) == (46.0, 3, pytest.approx(46 / 3))
    assert record["commands"] == [
        "python benchmarks/accuracy.py cifar_resnet20 --methods rtn qdrop ptmq+rounding=ste --bits w3a3 w4a4 --seeds 0 "
        "1 --set recon.iters=9"
    ]
    with (asked.results / f"{STEM}.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    text = (asked.results / f"{STEM}.md").read_text()
    assert "| qdrop | 81.00 ± 1.41 (2) | 81.00 ± 1.41 (2) |" in text
    assert "| float | 91.50 | 91.50 |" in text
    assert "| qdrop | 9 a block | 2 | 2 | 62 | 31 | 64 | 96 | 1 | 64 | 0 |" in text


def test_ptmq_is_told_beside_every_method_over_the_seeds_that_both_have(benchmark: Any, tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["qdrop", "ptmq"], bits=["w3a3"], seeds=[0, 1])
    for cell in benchmark.cells(asked)[:3]:  # ptmq's second seed is not there
        finish(cell, asked.work, {"w3a3": 80.0 if cell.seed else 50.0 if cell.label == "ptmq" else 40.0}, seconds=1.0)
    benchmark.write(asked)
    text = (asked.results / f"{STEM}.md").read_text()
    assert "| qdrop | +10.00 (0.80) |" in text
    assert "python benchmarks/accuracy.py cifar_resnet20 --methods qdrop --bits w3a3 --seeds 0 1" in text
    assert "python benchmarks/accuracy.py cifar_resnet20 --methods ptmq --bits w3a3 --seeds 0 " in text


def test_the_length_of_a_fit_is_told(benchmark: Any) -> None:
    def length(label: str, bits: str | None = None) -> str:
        cell = benchmark.Cell("cifar_resnet20", label, bits, 0, ())
        return str(benchmark.length({**vars(cell), "method": label}))

    found = [length("rtn"), length("adaround", "w3a3"), length("brecq", "w3a3"), length("ptmq_paper")]
    assert found == ["-", "500 a layer", "500 + 125 a block", "500 a block, 3 widths each"]
    assert length("robustquant") == "10 epochs"


def test_labels_that_a_method_used_are_shown(benchmark: Any, tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["rtn"], seeds=[0])
    finish(benchmark.cells(asked)[0], asked.work, {"w3a3": 60.0, "w4a4": 80.0}, seconds=0.0, labels=5000)
    benchmark.write(asked)
    assert json.loads((asked.results / f"{STEM}.json").read_text())["costs"][0]["labels"] == 5000


def test_cells_of_other_settings_are_not_mixed_in(benchmark: Any, tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["rtn"], seeds=[0])
    finish(benchmark.cells(asked)[0], asked.work, {"w3a3": 60.0, "w4a4": 80.0}, seconds=0.0)
    other = options(tmp_path, methods=["rtn"], seeds=[0], set=["recon.iters=10"])
    finish(benchmark.cells(other)[0], asked.work, {"w3a3": 90.0, "w4a4": 90.0}, seconds=0.0)
    benchmark.write(asked)
    rows = json.loads((asked.results / f"{STEM}.json").read_text())["rows"]
    assert [row["top1_mean"] for row in rows] == [60.0, 80.0]


def test_a_run_of_another_configuration_is_left_out(benchmark: Any, tmp_path: Path) -> None:
    refused = "ptmq+bits.extra=[w3a3]"  # a pair that bits=uniform learns
    asked = options(tmp_path, methods=["rtn", "ptmq", refused], seeds=[0])
    changed = "of a default that has changed since"
    for cell, then in zip(benchmark.cells(asked), ("", changed, changed), strict=True):
        finish(cell, asked.work, {"w3a3": 60.0}, seconds=0.0, meaning=then)
    benchmark.write(asked)
    rows = json.loads((asked.results / f"{STEM}.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["rtn"]


def test_results_keep_the_cells_of_runs_that_are_gone(benchmark: Any, tmp_path: Path) -> None:
    asked = options(tmp_path, methods=["rtn", "qdrop"], bits=["w3a3"], seeds=[0])
    first, second = benchmark.cells(asked)
    finish(first, asked.work, {"w3a3": 60.0}, seconds=0.0)
    benchmark.write(asked)
    asked.work = tmp_path / "elsewhere"
    finish(second, asked.work, {"w3a3": 80.0}, seconds=0.0)
    benchmark.write(asked)
    file = asked.results / f"{STEM}.json"
    record = json.loads(file.read_text())
    assert {row["method"]: row["top1_mean"] for row in record["rows"]} == {"rtn": 60.0, "qdrop": 80.0}

    gone = next(cell for cell in record["cells"] if cell["method"] == "rtn")
    gone["meaning"] = "of a default that has changed since"
    file.write_text(json.dumps(record))
    benchmark.write(asked)
    assert [row["method"] for row in json.loads(file.read_text())["rows"]] == ["qdrop"]
