from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.models import blocks, fold, graph, nodes
from ptmq_lightning.models.reparametrize import reparametrize


def folded(case):
    gm = copy.deepcopy(case.traced)
    return gm, fold.fold(gm)


def test_folding_keeps_the_logits_within_1e_5(case, error):
    gm, _ = folded(case)
    with torch.no_grad():
        assert error(gm(case.images), case.logits) < 1e-5


def test_folding_is_exact_but_for_rounding(case, error):
    """In float64 only rounding of about 1e-16 per operation is left: 1e-12 tells an algebraic mistake from noise."""
    gm = copy.deepcopy(case.traced).double()
    with torch.no_grad():
        expected = gm(case.images.double())
        fold.fold(gm)
        assert error(gm(case.images.double()), expected) < 1e-12


def test_no_batch_norm_is_left(case):
    gm, _ = folded(case)
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in gm.modules())


def test_a_layer_norm_keeps_its_affine_part_only_with_a_reason(case):
    gm, report = folded(case)
    affine = {str(n.target) for n in gm.graph.nodes if getattr(nodes.module_of(gm, n), "elementwise_affine", False)}
    assert affine == {what.removesuffix(" (LayerNorm affine)") for what, _ in report.kept if "LayerNorm" in what}


def test_the_chain_of_blocks_of_the_folded_network_is_bitwise_the_folded_network(case):
    gm, _ = folded(case)
    chain = nn.Sequential(*[block.module for block in blocks.cut(gm, case.images)])
    with torch.no_grad():
        assert torch.equal(chain(case.images), gm(case.images))


def test_reparametrization_is_exact(case, error):
    gm, _ = folded(case)
    gm = gm.double()
    with torch.no_grad():
        before = gm(case.images.double())
        reparametrize(gm, case.images.double())
        assert error(gm(case.images.double()), before) < 1e-12


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval()


def traced(module: nn.Module, channels: int = 4):
    return graph.trace(module, (channels, 6, 6))


def test_a_swin_norm_folds_through_window_partition():
    from ptmq_lightning.models import zoo

    gm = graph.trace(zoo.build("swin_t", pretrained=False, img_size=128, window_size=4).module, (3, 128, 128))
    targets = dict(fold.fold(gm).folded)
    assert targets["layers.0.blocks.1.norm1 (LayerNorm affine)"] == "layers.0.blocks.1.attn.qkv"
    assert targets["layers.1.downsample.norm (LayerNorm affine)"] == "layers.1.downsample.reduction"
    assert targets["norm (LayerNorm affine)"] == "head.fc"


def test_a_batch_norm_whose_input_has_another_reader_stays():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y) + y

    report = fold.fold(traced(Forked().eval()))
    assert report.folded == []
    assert report.kept == [("bn (BatchNorm)", "no single layer before it, and it is read by add (add)")]


def test_a_batch_norm_behind_a_grouped_transposed_convolution_folds_into_it(error):
    module = network(nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False), nn.BatchNorm2d(6)).double()
    for statistic in (module[1].running_mean, module[1].running_var):
        statistic.uniform_(0.5, 2.0)
    images = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    gm = traced(module)
    report = fold.fold(gm)
    assert report.folded == [("1 (BatchNorm)", "0")] and report.kept == []
    with torch.no_grad():
        assert error(gm(images), module(images)) < 1e-12


def test_a_batch_norm_before_a_transposed_convolution_stays():
    """Fewer products meet at its edges, so that a shift of what it reads is no bias."""
    report = fold.fold(traced(network(nn.ReLU(), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 3, 2))))
    assert report.folded == [] and [what for what, _ in report.kept] == ["1 (BatchNorm)"]


def test_a_batch_norm_before_a_layer_folds_forward(error):
    module = network(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2))
    module[1].running_mean.normal_()
    images = torch.randn(2, 4, 6, 6)
    gm = traced(module)
    report = fold.fold(gm)
    assert report.folded == [("1 (BatchNorm)", "2")]
    with torch.no_grad():
        assert error(gm(images), module(images)) < 1e-5


def test_a_shift_does_not_pass_zero_padding():
    report = fold.fold(traced(network(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, padding=1))))
    assert report.kept == [
        ("1 (BatchNorm)", "no single layer before it, and it is read by 2, whose zero padding lets no shift pass")
    ]


@pytest.mark.parametrize(
    ("name", "file"), [("vit_t", "vit_tiny_patch16_224"), ("mobileone_s0", "mobileone_s0_reparam")]
)
def test_real_networks_fold_within_1e_5(data_root, name, file, error):
    from ptmq_lightning.models import zoo

    net = zoo.build(name, checkpoint=data_root / "imagenet" / f"{file}.safetensors")
    gm = graph.trace(net.module, (3, 224, 224))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        report = fold.fold(gm)
        assert report.kept == []
        assert error(gm(images), net.module(images)) < 1e-5


def test_the_real_vision_transformer_is_reparametrized_within_1e_5(data_root, error):
    from ptmq_lightning.models import zoo

    net = zoo.build("vit_t", checkpoint=data_root / "imagenet" / "vit_tiny_patch16_224.safetensors")
    gm = graph.trace(net.module, (3, 224, 224))
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fold.fold(gm)
        report = reparametrize(gm, images)
        assert len(report.folded) == 25
        assert error(gm(images), net.module(images)) < 1e-5
