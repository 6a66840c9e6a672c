from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ptmq_lightning.models import fold, graph, zoo
from ptmq_lightning.models.equalize import equalize
from ptmq_lightning.runtime.hooks import watched_inputs


def chain(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Pointwise, depthwise, grouped: ranges far apart, one channel all zero."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 1), activation(), nn.Conv2d(8, 8, 3, padding=1, groups=8), activation(),
        nn.Conv2d(8, 6, 1, groups=2), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        layers[2].weight *= torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1)
        layers[2].weight[3] = 0
    return layers.eval()


def images_of(module: nn.Module | None = None) -> torch.Tensor:
    images = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    return images if module is None else images.to(next(module.parameters()).dtype)


def inputs_of(gm: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    """What a layer reads, (N, C, ...)."""
    seen = []
    with watched_inputs({name: gm.get_submodule(name)}, lambda _, x: seen.append(x)), torch.no_grad():
        gm(images)
    return seen[0]


def test_equalizing_is_exact_but_for_rounding(error):
    module = chain().double()
    images = images_of(module)
    gm = graph.trace(module, (4, 6, 6))
    report = equalize(gm, images)
    assert [what for what, _ in report.folded] == [f"{i} (equalization)" for i in (0, 2, 4)]
    with torch.no_grad():
        assert error(gm(images), module(images)) < 1e-12
        assert not torch.equal(gm.get_submodule("0").weight, module[0].weight)


def test_the_channels_that_a_depthwise_layer_reads_end_with_equal_peaks():
    module = chain()
    with torch.no_grad():
        module[0].weight *= torch.logspace(-1, 0, 8).reshape(-1, 1, 1, 1)
        module[0].bias.zero_()  # so that every channel is seen
    gm = graph.trace(module, (4, 6, 6))
    equalize(gm, images_of(), batch=3)  # two batches: the peak is that of all
    peaks = inputs_of(gm, "2", images_of()).amax((0, 2, 3))
    alive = torch.arange(8) != 3  # its kernel is all zero
    torch.testing.assert_close(peaks[alive], peaks[alive][0].expand(7))


def test_elsewhere_half_of_the_spread_goes_to_the_weights():
    """s_c = sqrt(p_c / w_c), with the same mean of the logarithms."""
    module = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        module[0].weight.zero_(), module[0].bias.copy_(torch.tensor([16.0, 1.0]))
        module[2].weight.copy_(torch.tensor([[0.5, 1.0], [0.25, 0.5]]))  # columns at 1/2 and 1 of the rows' ranges
    gm = graph.trace(module, (3,))
    equalize(gm, torch.zeros(2, 3))
    wanted = torch.tensor([32.0, 1.0]).sqrt() / torch.tensor(32.0).pow(0.25)  # divided by their geometric mean
    torch.testing.assert_close(gm.get_submodule("0").bias, torch.tensor([16.0, 1.0]) / wanted)
    torch.testing.assert_close(gm.get_submodule("2").weight, module[2].weight * wanted)


def test_a_channel_that_is_hardly_seen_is_not_blown_up():
    """Other images may show more of it: its peak counts as a hundredth of the mean."""
    module = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1, groups=2)).eval()
    with torch.no_grad():
        module[0].weight.zero_(), module[0].bias.copy_(torch.tensor([1.0, 0.0]))
    gm = graph.trace(module, (2, 4, 4))
    equalize(gm, torch.zeros(1, 2, 4, 4))
    kept = (module[2].weight / gm.get_submodule("2").weight).detach().flatten()
    assert kept[1] / kept[0] == pytest.approx(200)  # 1 by a hundredth of the mean of 1 and 0


def test_a_channel_without_weights_stays_as_it_is():
    module = chain()
    gm = graph.trace(module, (4, 6, 6))
    equalize(gm, images_of())
    assert torch.equal(gm.get_submodule("0").weight[3], module[0].weight[3])
    assert torch.equal(gm.get_submodule("2").weight[3], torch.zeros(1, 3, 3))


def test_images_that_show_nothing_change_nothing():
    module = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    gm = graph.trace(module, (2, 4, 4))
    equalize(gm, torch.zeros(1, 2, 4, 4))
    assert torch.equal(gm.get_submodule("0").weight, module[0].weight)
    assert torch.equal(gm.get_submodule("2").weight, module[2].weight)


@pytest.mark.parametrize("activation", [nn.ReLU6, nn.GELU, nn.SiLU])
def test_other_activations_are_reported_and_nothing_is_changed(activation):
    module = chain(activation)
    gm = graph.trace(module, (4, 6, 6))
    report = equalize(gm, images_of())
    assert report.folded == []
    assert report.kept[0] == ("0 (equalization)", f"read by _1 ({activation.__name__})")
    with torch.no_grad():
        assert torch.equal(gm(images_of()), module(images_of()))


def test_every_kind_of_network_stays_the_same_function(case, error):
    gm = copy.deepcopy(case.traced).double()
    with torch.no_grad():
        expected = gm(case.images.double())
        fold.fold(gm)
        equalize(gm, case.images.double())
        assert error(gm(case.images.double()), expected) < 1e-12


def test_the_real_mobileone_is_equalized_within_1e_5(data_root, error):
    net = zoo.build("mobileone_s0", checkpoint=data_root / "imagenet" / "mobileone_s0_reparam.safetensors")
    gm = graph.trace(net.module, (3, 224, 224))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    def spread(name: str) -> float:
        """The largest peak of a channel over the median one."""
        peaks = inputs_of(gm, name, images).abs().amax((0, 2, 3))
        return (peaks.max() / peaks.median()).item()

    with torch.no_grad():
        fold.fold(gm)
        before = [spread(name) for name in ("stages.0.2.reparam_conv", "stages.0.3.reparam_conv")]
        report = equalize(gm, images)
        assert len(report.folded) == 43
        depthwise, pointwise = (spread(name) for name in ("stages.0.2.reparam_conv", "stages.0.3.reparam_conv"))
        assert depthwise == pytest.approx(1, abs=1e-3) and pointwise < before[1] and before[0] > 2
        assert error(gm(images), net.module(images)) < 1e-5
