"""The serving example chooses by its two limits, and its command leaves a trace and a figure."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ptmq_lightning as ptmq
from ptmq_lightning.data.digits import open_digits
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.info import Evaluation, Row

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "serving.json"


@pytest.fixture(scope="module")
def serving() -> Any:
    folder = str(ROOT / "examples")
    sys.path.insert(0, folder)  # as running the file does
    try:
        spec = importlib.util.spec_from_file_location("serving", ROOT / "examples" / "serving.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def rungs(serving: Any) -> list[Any]:
    """Float is the best and the slowest; of the two widths the narrow one agrees less and is no faster."""
    return [
        serving.Rung("float", 92.0, 100.0, 4000, 4.0),
        serving.Rung("w2a4", 88.0, 90.0, 250, 2.0),
        serving.Rung("w8a8", 92.0, 99.0, 1000, 2.0),
    ]


@pytest.mark.parametrize(
    ("deadline_ms", "memory", "name"),
    [
        pytest.param(4.0, 4000, "float", id="all fit: the best"),
        pytest.param(3.9, 4000, "w8a8", id="the deadline shuts float out"),
        pytest.param(9.0, 3999, "w8a8", id="memory shuts float out"),
        pytest.param(9.0, 999, "w2a4", id="memory leaves the narrow width"),
        pytest.param(0.1, 999, "w2a4", id="no rung is in time: the fastest that memory holds"),
        pytest.param(0.1, 4000, "w8a8", id="no rung is in time: the better of two that are as fast"),
        pytest.param(9.0, 100, "w2a4", id="memory holds none: the smallest"),
    ],
)
def test_the_best_rung_within_both_limits_is_chosen(serving: Any, deadline_ms: float, memory: int, name: str) -> None:
    assert serving.Chooser(rungs(serving)).choose(deadline_ms, memory).name == name


def test_of_rungs_that_agree_equally_the_smaller_is_chosen(serving: Any) -> None:
    same = [serving.Rung("w8a8", 92.0, 99.0, 1000, 2.0), serving.Rung("w6a6", 91.0, 99.0, 750, 2.0)]
    assert serving.Chooser(same).choose(9.0, 4000).name == "w6a6"


def test_a_slow_machine_lowers_the_choice_and_a_single_stall_does_not(serving: Any) -> None:
    chooser = serving.Chooser(rungs(serving))
    for _ in range(3):
        chooser.served(chooser.rungs[0], 4.0)
    chooser.served(chooser.rungs[0], 400.0)
    assert chooser.choose(5.0, 4000).name == "float"
    for _ in range(serving.RECENT):
        chooser.served(chooser.rungs[0], 8.0)
    assert chooser.choose(5.0, 4000).name == "w8a8"
    for _ in range(serving.RECENT):  # of another rung, whose times tell the same of the machine
        chooser.served(chooser.rungs[2], 1.0)
    assert chooser.choose(5.0, 4000).name == "float"
    assert chooser.expected_ms(chooser.rungs[0]) == 4.0  # a machine faster than at the start promises nothing


def test_a_trace_switches_with_the_script_and_records_what_was_answered(serving: Any) -> None:
    def answering(label: int) -> Callable[[Any], Any]:
        return lambda image: np.eye(3)[[label]]

    found = rungs(serving)
    phases = serving.script(found, 12)
    seconds = iter(range(1000))
    rows = serving.serve(
        serving.Chooser(found), {"float": answering(0), "w8a8": answering(1), "w2a4": answering(2)},
        [(None, 0)] * 12, phases, clock=lambda: next(seconds) * 2e-3,
    )  # fmt: skip
    assert [row["rung"] for row in rows] == ["float"] * 2 + ["w8a8"] * 2 + ["w2a4"] * 4 + ["w8a8"] * 2 + ["float"] * 2
    assert [row["correct"] for row in rows] == [row["rung"] == "float" for row in rows]
    assert {row["ms"] for row in rows} == {2.0}


def test_the_committed_trace_and_the_page_of_results_tell_the_same(serving: Any) -> None:
    record = json.loads(RESULT.read_text())
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    ms = {rung["name"]: f"{rung['ms']:.2f} ms" for rung in record["rungs"]}
    assert f"{ms['float']} in float and {ms['w8a8']} at w8a8" in text
    deadlines = [phase["deadline_ms"] for phase in record["phases"] for _ in range(phase["requests"])]
    late = sum(ms > deadline for ms, deadline in zip(record["trace"]["ms"], deadlines, strict=True))
    assert f"{late} of {len(deadlines)} answers were late" in text
    assert min(rung["ms"] for rung in record["rungs"]) == next(
        rung["ms"] for rung in record["rungs"] if rung["name"] == "w8a8"
    )


@pytest.mark.slow
def test_the_command_serves_digits_and_leaves_a_trace_and_a_figure(tmp_path: Path) -> None:
    """In a process of its own, as everything that runs ONNX Runtime."""
    torch.manual_seed(0)
    network = build("digits_resnet", pretrained=False)
    train, _ = open_digits(network.preprocessing)
    model = ptmq.quantize(network.module, torch.stack([train[i][0] for i in range(64)]), bits=[["w4a4"], ["w8a8"]])
    rows = [
        Row(name, bits, bits, 10.0, None, agreement, None, 0.1, size, 1)
        for name, bits, agreement, size in (("w4a4", 4, 80.0, 5000), ("w8a8", 8, 99.0, 9000))
    ]
    accuracy = Evaluation({"top1": 10.0, "top5": None}, rows, 64)
    model.info = replace(model.info, preprocessing=network.preprocessing, accuracy=accuracy)
    ptmq.save(model, tmp_path / "model")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "serving.py", "model", "--requests", "60", "--out", "trace"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "trace.json").read_text())
    assert [rung["name"] for rung in record["rungs"]] == ["float", "w4a4", "w8a8"]
    assert len(record["trace"]["ms"]) == 60
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    assert "memory chooses the width" in done.stdout
