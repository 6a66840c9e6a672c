from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.models import fold, graph, zoo
from ptmq_lightning.models.rotate import rotate

IMAGES = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Two heads of three channels; one channel of the values and one of the keys is a hundred times the rest."""

    def __init__(self, behind: nn.Module | None = None, twice: bool = False) -> None:
        super().__init__()
        self.qkv, self.proj, self.behind, self.twice = nn.Linear(8, 18), nn.Linear(6, 5), behind, twice
        with torch.no_grad():
            self.qkv.weight[[7, 14]] *= 100

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(-1, 36, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        made = torch.softmax(0.1 * q @ k.transpose(-2, -1), -1) @ v
        made = made + v if self.twice else made
        made = made.transpose(1, 2).flatten(2)
        return self.proj(made if self.behind is None else self.behind(made))


def rotated(module: nn.Module):
    gm = graph.trace(module.double().eval(), (8, 6, 6))
    return gm, rotate(gm)


def test_rotation_is_exact(case, error):
    gm = copy.deepcopy(case.traced)
    fold.fold(gm)
    gm = gm.double()
    with torch.no_grad():
        before = gm(case.images.double())
        rotate(gm)
        assert error(gm(case.images.double()), before) < 1e-12


def test_a_large_channel_is_spread_over_its_head_and_over_no_other(error):
    module = Attention()
    gm, report = rotated(module)
    assert report.folded == [("queries and keys (rotation)", "qkv"), ("qkv (rotation)", "proj")]
    x = IMAGES.double().flatten(2).transpose(1, 2)
    with torch.no_grad():
        assert error(gm(IMAGES.double()), module(IMAGES.double())) < 1e-12
        before, after = (m.qkv(x).square().mean((0, 1)).reshape(3, 2, 3) for m in (module, gm))
    torch.testing.assert_close(after.sum(2), before.sum(2))  # each head keeps what it holds of q, k and v
    assert before[2, 0].amax() / before[2, 0].mean() > 2.9
    assert after[2, 0].amax() / after[2, 0].mean() < 2.2
    assert not torch.allclose(after[1, 0], before[1, 0])


def test_values_stay_where_something_else_reads_their_product(error):
    module = Attention(behind=nn.GELU())
    gm, report = rotated(module)
    assert report.folded == [("queries and keys (rotation)", "qkv")]
    assert report.kept == [("qkv (rotation)", "its heads are read by behind")]
    with torch.no_grad():
        assert error(gm(IMAGES.double()), module(IMAGES.double())) < 1e-12


def test_channels_that_are_read_twice_stay(error):
    module = Attention(twice=True)
    weight = module.qkv.weight.detach().double().clone()
    gm, report = rotated(module)
    assert report.folded == [("queries and keys (rotation)", "qkv")]
    assert torch.equal(gm.qkv.weight[12:], weight[12:])
    with torch.no_grad():
        assert error(gm(IMAGES.double()), module(IMAGES.double())) < 1e-12


@pytest.mark.parametrize(
    ("made", "pairs"),
    [
        (lambda q: q / 2, 1),
        (lambda q: 2 * q, 1),
        (lambda q: 2 / (q + 9), 0),
        (lambda q: 1 / q, 0),
        (lambda q: q * q, 0),
    ],
)
def test_only_a_scale_by_a_number_is_passed(made, pairs, error):
    class Scaled(Attention):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).reshape(-1, 36, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
            return self.proj((torch.softmax(made(q) @ k.transpose(-2, -1), -1) @ v).transpose(1, 2).flatten(2))

    module = Scaled()
    gm, report = rotated(module)
    assert [what for what, _ in report.folded].count("queries and keys (rotation)") == pairs
    with torch.no_grad():
        assert error(gm(IMAGES.double()), module(IMAGES.double())) < 1e-12


@pytest.mark.parametrize(
    ("name", "pairs", "values"),
    [
        ("vit_t", 12, 12),
        pytest.param("swin_tiny_patch4_window7_224", 12, 12, marks=pytest.mark.slow),  # a bias on the scores, windows
        ("levit_128s", 11, 0),  # split; an activation function behind the heads
        pytest.param("swinv2_cr_tiny_224", 0, 12, marks=pytest.mark.slow),  # queries and keys are normalized
        ("efficientformer_l1", 1, 1),
        ("resnet18", 0, 0),
    ],
)
def test_families(name, pairs, values, error):
    network = zoo.build(name, pretrained=False)
    gm = graph.trace(network.module, network.preprocessing.input_size)
    fold.fold(gm)
    images = torch.randn(2, *network.preprocessing.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = gm(images)
        report = rotate(gm)
        assert error(gm(images), before) < 1e-5
    folded = [what for what, _ in report.folded]
    assert folded.count("queries and keys (rotation)") == pairs
    assert len(folded) - pairs == values
