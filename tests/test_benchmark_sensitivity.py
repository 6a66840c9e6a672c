"""The sensitivity benchmark takes the network and images of a run, and its table follows from the results."""

from __future__ import annotations

import json

import torch

from benchmarks import sensitivity

DIGITS = ["model.pretrained=false", "data.calibration_images=8"]


def test_the_table_follows_from_the_results() -> None:
    found = json.loads(sensitivity.FILE.read_text(encoding="utf-8"))
    assert sensitivity.FILE.with_suffix(".md").read_text(encoding="utf-8") == sensitivity.table(found)


def test_both_measures_look_at_a_runs_network_on_its_images() -> None:
    torch.manual_seed(0)
    model, images = sensitivity.of_run(DIGITS)
    assert len(images) == 8
    row = sensitivity.compare(model, images)
    free = [name for name, layer in model.layers.items() if not layer.pinned]
    assert row["layers"] == len(free) and row["pairs"] == len(model.pairs)
    assert 0 < row["rank_correlation"] <= 1 and set(row["seconds"]) == {"fisher", "divergence"}
    assert "| digits | " in sensitivity.table({"digits": row})
