"""A network of the user's own file is built by its name there, or the message says what the file lacks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ptmq_lightning.models import zoo
from ptmq_lightning.runtime.errors import ModelError

TEXT = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
import beside

@dataclass
class Options:
    width: int = 4

class Net(nn.Module):
    def __init__(self, num_classes=2, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, Options(width).width, beside.KERNEL)
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

def make(num_classes=2):
    return Net(num_classes)

class Wide(Net):
    def __init__(self, num_classes, *, width=4):
        super().__init__(num_classes, width)

class Narrow(Net):
    def __init__(self, num_classes, width):
        super().__init__(num_classes, width)

number = 5
no_network = dict
"""
SIZE = {"input_size": [1, 8, 12], "mean": [0.5], "std": [0.25]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("KERNEL = 3\n")
    (tmp_path / "mein netz.py").write_text(TEXT)
    return tmp_path / "mein netz.py"


def test_a_class_of_a_file_takes_its_options_and_its_checkpoint(file: Path, tmp_path: Path) -> None:
    own = zoo.build(f"{file}:Net", pretrained=False, preprocessing=SIZE, num_classes=3, width=6)
    torch.save({"model": own.module.state_dict(), "classes": ["a", "b", "c"]}, tmp_path / "own.pt")
    path = list(sys.path)
    filled = zoo.build(f"{file}:Net", checkpoint=tmp_path / "own.pt", preprocessing=SIZE, num_classes=3, width=6)
    x = torch.rand(2, 1, 8, 12)
    assert torch.equal(filled.module(x), own.module(x)) and filled.module(x).shape == (2, 3)
    assert (filled.classes, sys.path) == (("a", "b", "c"), path)
    assert (filled.preprocessing.input_size, filled.preprocessing.crop_mode) == ((1, 8, 12), "squash")


def test_a_function_of_a_file_gives_a_network(file: Path) -> None:
    assert zoo.build(f"{file}:make", pretrained=False, preprocessing=SIZE, num_classes=7).module.head.out_features == 7


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("nothing.py:Net", {}, "there is no file 'nothing.py'"),
        ("FILE", {}, "no class or function ''"),
        ("FILE:Nett", {}, "no class or function 'Nett'"),
        ("FILE:number", {}, "no class or function 'number'"),
        ("FILE:no_network", {}, "gave dict"),
        ("FILE:Net", {"depth": 3}, "does not take these options"),
        ("FILE:Wide", {}, "Set model.num_classes=N."),
        ("FILE:Narrow", {}, "Set model.num_classes=N +model.kwargs.width=VALUE."),
        ("FILE:Net", {"preprocessing": {"input_size": [1, 8, 8]}}, "nobody tells the mean, std"),
        ("FILE:Net", {"pretrained": True}, "model.checkpoint=FILE"),
    ],
)
def test_what_is_missing_is_said(name: str, options: dict[str, Any], says: str, file: Path) -> None:
    given = {"pretrained": False, "preprocessing": SIZE} | options
    with pytest.raises(ModelError) as caught:
        zoo.build(name.replace("FILE", str(file)), **given)
    assert says in str(caught.value)


def test_a_file_that_trains_when_it_is_imported_is_told_how_not_to(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('no data')\n")
    with pytest.raises(ModelError, match=r"SystemExit: no data.*__main__"):
        zoo.build(f"{tmp_path}/train.py:Net", pretrained=False, preprocessing=SIZE)
