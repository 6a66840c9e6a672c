"""The comparison with other tools at 8 bits runs on a small network, and its page says what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.accuracy_figure import TITLES

pytestmark = pytest.mark.runtimes


@pytest.fixture
def w8a8() -> Any:
    """Imported here: at the top, the packages behind it would be loaded into every test process, which then lose the
    file of their captured output to one of them."""
    from benchmarks import w8a8 as benchmark

    return benchmark


def test_a_small_network_is_quantized_measured_and_timed(w8a8: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    images = torch.randn(24, 3, 8, 8)
    with torch.no_grad():
        labels = module(images).argmax(1)
    batches = list(zip(images.split(5), labels.split(5), strict=True))
    tools = ["float onnxruntime", "onnxruntime", "ptmq onnx"]
    rows = w8a8.compared(w8a8.Case(module, images, ["method=rtn"], tmp_path), batches, tools)
    for tool, row in rows.items():
        assert row["bytes"] > 0 and "onnxruntime" in row["version"] and set(row["ms"]) == {"1", "32"}
        assert row["top1"] == row["agreement"] and row["evaluation_images"] == 24
        assert row["logit_error"] < (1e-9 if tool == "float onnxruntime" else 1e-2)
    assert min(rows[tool]["logit_error"] for tool in tools[1:]) > 1e-9  # these have integers
    assert rows["onnxruntime"]["images"] == rows["ptmq onnx"]["images"] == 24


def test_the_page_follows_from_the_results(w8a8: Any) -> None:
    found = json.loads(w8a8.FILE.read_text(encoding="utf-8"))
    assert set(found) == {*TITLES, *w8a8.RANDOM}
    assert all(set(tools) == set(w8a8.TOOLS) for tools in found.values())
    assert w8a8.FILE.with_suffix(".md").read_text(encoding="utf-8") == w8a8.page(found)
