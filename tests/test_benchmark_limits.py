"""The page of what holds a width back follows from its results, and its cases are of the layers that they name."""

from __future__ import annotations

import json

from benchmarks import limits
from ptmq_lightning.runtime.model import LayerInfo
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import small_model


def test_the_page_follows_from_the_results() -> None:
    found = json.loads(limits.FILE.read_text(encoding="utf-8"))
    assert limits.FILE.with_suffix(".md").read_text(encoding="utf-8") == limits.page(found)


def test_a_layer_is_called_by_what_it_does() -> None:
    shapes = {"depthwise": (8, 1, 3, 3), "pointwise": (8, 4, 1, 1), "convolution": (8, 4, 3, 3)}
    for name, shape in shapes.items():
        assert limits.kind(LayerInfo("stages.0.1.conv", 0, "conv", shape)) == name
    assert limits.kind(LayerInfo("blocks.3.attn.qkv", 0, "linear", (8, 4))) == "attn.qkv"
    assert limits.kind(LayerInfo("layers.0.2", 0, "linear", (8, 4))) == "linear"


def test_every_layer_that_is_not_pinned_is_at_eight_bits_in_one_case_of_its_kind() -> None:
    model, pair = small_model(), BitWidth(3, 3)
    cases = dict(limits.cases(model, pair))
    free = [layer for layer in model.layers.values() if not layer.pinned]
    for layer in free:
        raised = [name for name, widths in cases.items() if widths(layer).w == 8 and name.endswith("at 8")]
        assert len([name for name in raised if "third" in name]) == 1
        assert f"{limits.kind(layer)} at 8" in raised
    assert all(cases["all at the width"](layer) == pair for layer in free)
