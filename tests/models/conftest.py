"""Every family of networks with random weights: built, made non-trivial to fold, and traced once per session."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from ptmq_lightning.models import graph, zoo

SLOW = pytest.mark.slow
SWIN = {"img_size": 128, "window_size": 4}
NETWORKS = [
    pytest.param((name, size, options), id=name, marks=marks)
    for name, size, options, marks in (
        ("digits_resnet", 16, {}, ()),
        ("cifar_resnet20", 32, {}, ()),
        ("cifar_vit", 32, {}, ()),
        ("resnet18", 64, {}, ()),
        ("resnet50", 64, {}, SLOW),
        ("mobilenetv2", 64, {}, ()),
        ("regnetx_600mf", 64, {}, ()),
        ("mobileone_s0", 64, {}, ()),
        ("vit_t", 64, {"img_size": 64}, ()),
        ("vit_s", 64, {"img_size": 64}, ()),
        ("vit_b", 64, {"img_size": 64}, SLOW),
        ("deit_t", 64, {"img_size": 64}, ()),
        ("deit_s", 64, {"img_size": 64}, ()),
        ("deit_b", 64, {"img_size": 64}, SLOW),
        ("swin_t", 128, SWIN, ()),
        ("swin_s", 128, SWIN, SLOW),
        ("convnext_atto", 64, {"ls_init_value": 0.5}, ()),
        ("convnext_tiny", 64, {}, SLOW),
        ("efficientnet_b0", 64, {}, ()),
        ("tf_mobilenetv3_small_minimal_100", 65, {}, ()),  # padding "same", read from the size
        ("mobilenetv3_small_100", 64, {}, ()),
        ("levit_128s", 224, {}, ()),
        ("mobilevit_xxs", 64, {}, ()),
        ("nf_resnet26", 64, {}, SLOW),  # standardized weights
        ("beit_base_patch16_224", 224, {}, SLOW),  # a linear called as a function, its bias put together
        ("dla46_c", 64, {}, ()),  # no name pattern: automatic cut
        ("pit_ti_224", 224, {}, SLOW),
    )
]


@dataclass(frozen=True)
class Case:
    """A network, its traced form, images (2, C, H, W) and the network's logits on them."""

    name: str
    module: nn.Module
    traced: fx.GraphModule
    images: Tensor
    logits: Tensor


def randomize(module: nn.Module) -> nn.Module:
    """Statistics, affine parts and layer scales drawn at random, so that a wrong fold cannot pass."""
    g = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_(0, 0.1, generator=g)
            part.running_var.uniform_(0.5, 1.5, generator=g)
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)) and part.weight is not None:
            part.weight.data.uniform_(0.5, 1.5, generator=g)
            part.bias.data.normal_(0, 0.1, generator=g)
        for name, parameter in part.named_parameters(recurse=False):
            if name.startswith("gamma"):
                parameter.data.uniform_(0.1, 1.0, generator=g)
    return module


@pytest.fixture(scope="session", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    name, size, options = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = randomize(zoo.build(name, pretrained=False, **options).module)
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return Case(name, module, graph.trace(module, (3, size, size)), images, module(images))


@pytest.fixture(scope="session")
def data_root() -> Path:
    root = Path(os.environ.get("PTMQ_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"NO REAL NETWORKS: no folder '{root}'; set PTMQ_DATA to the development data to run this test")
    return root


@pytest.fixture(scope="session")
def error() -> Callable[[Tensor, Tensor], float]:
    """Largest difference relative to the largest expected value."""
    return lambda found, expected: ((found - expected).abs().max() / expected.abs().max()).item()
