from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ptmq_lightning.models import fold, graph, zoo
from ptmq_lightning.models.equalize import equalize


def chain(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Pointwise, depthwise, grouped: ranges far apart, one channel all zero."""
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 1), activation(), nn.Conv2d(8, 8, 3, padding=1, groups=8), activation(),
        nn.Conv2d(8, 6, 1, groups=2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        layers[2].weight *= torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1)
        layers[2].weight[3] = 0
    return layers.eval()


def test_equalizing_is_exact_but_for_rounding(error):
    module, images = chain().double(), torch.randn(4, 4, 6, 6, dtype=torch.float64)
    gm = graph.trace(module, (4, 6, 6))
    report = equalize(gm)
    assert [what for what, _ in report.folded] == [f"{i} (equalization)" for i in (0, 2, 4)]
    with torch.no_grad():
        assert error(gm(images), module(images)) < 1e-12


def test_neighboring_layers_end_with_equal_channel_ranges():
    gm = graph.trace(chain(), (4, 6, 6))
    equalize(gm)
    rows = gm.get_submodule("0").weight.abs().flatten(1).amax(1)
    columns = gm.get_submodule("2").weight.abs().flatten(1).amax(1)
    alive = columns > 0
    torch.testing.assert_close(rows[alive], columns[alive], rtol=1e-2, atol=0)  # sweeps stop at 1e-3 per pair


def test_a_channel_without_weights_stays_as_it_is():
    module = chain()
    gm = graph.trace(module, (4, 6, 6))
    equalize(gm)
    assert torch.equal(gm.get_submodule("0").weight[3], module[0].weight[3])
    assert torch.equal(gm.get_submodule("2").weight[3], torch.zeros(1, 3, 3))


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.GELU, nn.SiLU])
def test_other_activations_are_reported_and_nothing_is_changed(activation):
    module = chain(activation)
    gm = graph.trace(module, (4, 6, 6))
    report = equalize(gm)
    assert report.folded == []
    assert report.kept[0] == ("0 (equalization)", f"read by _1 ({activation.__name__})")
    images = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        assert torch.equal(gm(images), module(images))


def test_folding_equalizes_on_request(case, error):
    gm = copy.deepcopy(case.traced).double()
    with torch.no_grad():
        expected = gm(case.images.double())
        fold.fold(gm, equalize=True)
        assert error(gm(case.images.double()), expected) < 1e-12


def test_the_real_mobileone_is_equalized_within_1e_5(data_root, error):
    net = zoo.build("mobileone_s0", checkpoint=data_root / "imagenet" / "mobileone_s0_reparam.safetensors")
    gm = graph.trace(net.module, (3, 224, 224))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def spread() -> float:
        """Largest channel range over the median one, worst layer."""
        ranges = [m.weight.abs().flatten(1).amax(1) for m in gm.modules() if isinstance(m, nn.Conv2d)]
        return max((r.max() / r.median()).item() for r in ranges)

    with torch.no_grad():
        before = spread()
        report = fold.fold(gm, equalize=True)
        assert len(report.folded) == 43
        assert before > 30 and spread() < 3
        assert error(gm(images), net.module(images)) < 1e-5
