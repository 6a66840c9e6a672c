"""Values are read in the order in which they lie in memory, and come back in the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.runtime import grid, layout

X = torch.randn(3, 5, 4, 2, generator=torch.Generator().manual_seed(0))
LAST = X.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("layer", "trains"),
    [
        (nn.Conv2d(3, 16, 1, stride=2), False),
        (nn.Conv2d(15, 16, 1, stride=(1, 2)), False),
        (nn.Conv2d(16, 16, 1, stride=2), True),
        (nn.Conv2d(3, 16, 1), True),
        (nn.Conv2d(3, 16, 3, stride=2), True),
        (nn.Conv2d(8, 8, 1, stride=2, groups=8), True),
        (nn.MaxPool2d((2, 2), stride=(2, 2)), True),
        (nn.Linear(3, 3), True),
    ],
)
def test_only_a_narrow_strided_1x1_convolution_keeps_a_network_from_channels_last(layer: nn.Module, trains: bool):
    assert layout.trains_channels_last(nn.Sequential(nn.ReLU(), nn.Sequential(layer))) == trains


@pytest.mark.parametrize("x", [X, LAST], ids=["first", "last"])
def test_features_come_back_from_their_rows_in_the_same_layout(x: Tensor) -> None:
    last = layout.channels_last(x)
    found = layout.from_rows(layout.rows(x, last=last), x.shape, last=last)
    assert torch.equal(found, x) and found.stride() == x.stride()
    assert found.data_ptr() == x.data_ptr()  # a view
    assert last == (x is LAST)


def test_an_image_alone_keeps_its_layout() -> None:
    assert layout.channels_last(LAST[:1]) and not layout.channels_last(X[:1])
    assert not layout.channels_last(X.flatten(1))


@pytest.mark.parametrize("x", [X, LAST, X.transpose(1, 3), X.permute(3, 1, 0, 2)])
def test_a_dense_tensor_is_read_without_a_copy(x: Tensor) -> None:
    assert layout.dense(x) is x
    values = layout.flat(x)
    assert values.data_ptr() == x.data_ptr()
    assert torch.equal(values.as_strided(x.shape, x.stride()), x)


@pytest.mark.parametrize("x", [X[:, 1:], X[..., 0], LAST[:, :2], X[:1].expand(4, -1, -1, -1)])
def test_a_tensor_with_gaps_is_copied_in_its_order(x: Tensor) -> None:
    found = layout.dense(x)
    assert found is not x and layout.is_dense(found) and torch.equal(found, x)


@pytest.mark.parametrize("x", [LAST, LAST[:, 1:], X.transpose(1, 2)], ids=["last", "gaps", "turned"])
def test_fake_quantization_gives_the_same_bits_in_every_layout(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "PIECE", 7)
    step, zero = torch.tensor(0.3), torch.tensor(3.0)
    table = torch.arange(256, dtype=torch.uint8) // 2
    for function in (grid.LeanActivation.of(step, zero, 3), grid.LookUp.of(step, zero, table)):
        found = function(x)
        assert torch.equal(found, function(x.contiguous()))
        assert torch.equal(function(x.clone(), in_place=True), found)
