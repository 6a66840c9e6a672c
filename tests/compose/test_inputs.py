"""Images of other channels and shapes than three and square, and any number of classes, go the whole way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.compose.library import quantize
from ptmq_lightning.export.export import write_export
from ptmq_lightning.export.session import Session


def network(channels: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same")]
    return nn.Sequential(*stem, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)).eval()


@pytest.mark.runtimes
@pytest.mark.parametrize(
    ("channels", "height", "width", "classes"),
    [(1, 8, 8, 10), (4, 8, 8, 2), (3, 8, 14, 7), (1, 12, 6, 1), (2, 8, 8, 1001)],
)
def test_an_input_of_any_shape_is_quantized_saved_and_exported(
    channels: int, height: int, width: int, classes: int, tmp_path: Path
) -> None:
    x = torch.randn(8, channels, height, width, generator=torch.Generator().manual_seed(1))
    model = quantize(network(channels, classes), x, bits=[["w4a4"], ["w8a8"]]).eval()
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    for pair in ("w4a4", "w8a8"):
        model.switch(pair)
        loaded.switch(pair)
        with torch.no_grad():
            assert loaded(x).shape == (8, classes) and torch.equal(loaded(x), model(x)), pair
    report = write_export(loaded, tmp_path / "export", x, ["w8a8"])["w8a8"]
    assert report.largest_step is not None and report.largest_step <= 1
    assert Session(tmp_path / "export")(x[:3]).shape == (3, classes)
