"""The script for a GPU runs from end to end on the CPU, and its extrapolation is a line through two runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cost, gpu, speed
from ptmq_lightning.compose.cli import configuration
from tests.test_benchmark_speed import SMALL


def run(command: list[str], noise: Path, folder: Path) -> dict[str, Any]:
    """What cost.measure would find where 4 blocks take 10 ms an iteration and all else 30 s."""
    assert noise.exists()
    (iters,) = (int(word.split("=")[1]) for word in command if word.startswith("recon.iters="))
    return {"blocks": 4, "seconds": {"reconstruct": 4 * 0.01 * iters, "rest": 30.0}, "peak_memory_bytes": 2**20 * iters}


def test_every_column_is_filled_on_a_cpu_but_those_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed, "BLOCKS", {"resnet20": SMALL["resnet"]})
    monkeypatch.setattr(gpu.kernels, "compiler", lambda: None)  # its seconds are those of tests of the kernels
    monkeypatch.setattr(cost, "measure", run)
    file = tmp_path / "gpu.json"
    words = ["--device", "cpu", "--steps", "1", "--blocks", "resnet20", "--networks", "resnet18", "--images", "2"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words, "--json", str(file)])
    gpu.main()
    found = json.loads(file.read_text())
    block, network = found["blocks"]["resnet20"], found["networks"]["resnet18"]
    assert block["eager"] > 0 and block["operations"] > 100
    assert block["compiled"] is block["kernels"] is block["graph"] is None
    assert network["milliseconds"] == pytest.approx(10) and network["peak_memory_bytes"] == 60 * 2**20
    for schedule in gpu.SCHEDULES:
        iters = configuration([f"recon={schedule}"]).recon.iters
        assert network["minutes"][schedule] == pytest.approx((30 + 4 * 0.01 * iters) / 60)
    assert "| resnet20 | " in file.with_suffix(".md").read_text() == gpu.table(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_graph_of_a_step_learns_at_every_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BLOCKS", SMALL)
    step = speed.Step(speed.fit_of("resnet", [], "cuda")[0])
    replay = gpu.as_graph(step)
    gradients = []
    for _ in range(2):
        replay()
        gradients.append([p.grad.clone() for p in step.module.parameters() if p.grad is not None])
    assert gradients[0] and all(bool(g.isfinite().all()) for g in gradients[0])
    assert not all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))  # Adam moved in between
