"""A step of a fit starts no more operations than it did, and the benchmark of its speed measures what it says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import set_fused_attn
from timm.models.resnet import BasicBlock
from timm.models.vision_transformer import Block
from torch import nn

from benchmarks import speed

SMALL: dict[str, tuple[Any, tuple[int, ...]]] = {
    "resnet": (lambda: BasicBlock(8, 8), (8, 6, 6)),
    "deit": (lambda: nn.Sequential(speed.Tokens(), Block(32, 2, qkv_bias=True)), (32, 4, 4)),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    set_fused_attn(False)
    monkeypatch.setattr(speed, "BLOCKS", SMALL)


# What was counted with torch 2.13, and 2 %: another release may make a view more. A GPU waits for each of them; its
# features are not laid out anew.
@pytest.mark.parametrize(("block", "most"), [("resnet", 533), ("deit", 1905)])
def test_a_step_at_four_widths_starts_no_more_operations_than_it_did(block: str, most: int) -> None:
    step = speed.Step(speed.fit_of(block, ["trainer.channels_last=never"])[0])
    step()  # Adam makes its state in the first
    assert len(step.module.recipe.groups.groups) == 4
    assert most * 0.8 < speed.operations(step) <= most


def test_the_counter_sees_every_operation() -> None:
    x = torch.randn(3)
    assert speed.operations(lambda: x.add(1).mul(2)) == 2
    assert speed.operations(lambda: x.view(1, 3)) == 1


def test_a_block_is_measured_in_every_kind_of_step() -> None:
    row = speed.measure("resnet", 2, [])
    assert row["widths"] == 4 and min(row[kind] for kind in ("step", "floor", "plain")) > 0
    result = {"torch": torch.__version__, "threads": 1, "compiled": False, "set": [], "blocks": [row]}
    assert "| resnet | 4 | " in speed.table(result)
