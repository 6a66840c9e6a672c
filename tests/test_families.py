"""The promises of issue and design that hold for every named network, on random weights: fit, commit, save, load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.models import blocks, fold, graph, zoo
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.reconstruction.recipe import Recipe, Schedule
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.model import MultiBitModel, passthrough, weights_of
from ptmq_lightning.runtime.spec import BitGroups
from tests.networks import mixer, objective, trainer

SLOW = pytest.mark.slow
GROUPS = BitGroups.of([[3, 4], [[5, 5], [6, 6]], [8]])
SWIN = {"img_size": 64, "window_size": 2}
NARROW = {"layers": (1, 1, 1, 1), "channels": (16, 16, 32, 32)}  # the same kinds of blocks, of fewer weights
NETWORKS = [
    pytest.param((name, size, options), id=name if marks else f"small {name}", marks=marks)
    for name, size, options, marks in (
        ("cifar_resnet20", 32, {}, ()),
        ("digits_resnet", 16, {}, ()),
        ("mobileone_s0", 64, {}, SLOW),
        ("resnet18", 32, NARROW, ()),
        ("resnet18", 32, {}, SLOW),
        ("resnet50", 32, {}, SLOW),
        ("mobilenetv2_035", 32, {}, ()),
        ("mobilenetv2", 32, {}, SLOW),
        ("regnetx_600mf", 32, {}, SLOW),
        ("cifar_vit", 32, {"depth": 2}, ()),
        ("cifar_vit", 32, {}, SLOW),
        ("vit_t", 32, {"img_size": 32, "depth": 1}, ()),
        ("vit_t", 32, {"img_size": 32}, SLOW),
        ("vit_s", 32, {"img_size": 32}, SLOW),
        ("vit_b", 32, {"img_size": 32}, SLOW),
        ("deit_t", 32, {"img_size": 32}, SLOW),
        ("deit_s", 32, {"img_size": 32}, SLOW),
        ("deit_b", 32, {"img_size": 32}, SLOW),
        ("swin_t", 64, SWIN, SLOW),
        ("swin_s", 64, SWIN, SLOW),
    )
]
STEPS = StepSize("nested", anchor=4, free_widths=[3], learn=True, p=2.0)
RECIPE = Recipe(
    GROUPS,
    mixer("matched"),
    objective("gd_direct"),
    RoundingKeys("per_group", [[3], [4, 5, 6, 8]]),
    Schedule(iters=1, batch=2, warmup=0.0),
    learn_step_sizes=True,
)


@torch.no_grad()
def on_latent_grid(chain: list[blocks.Block]) -> None:
    """The float network that the model's quantizers are compared with: its weights on the latent grid."""
    for module in {m for block in chain for m in block.module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}:
        n, step = grid.latent(module.weight)
        module.weight.copy_(n.float() * grid.per_channel(step, n))


def logits(model: MultiBitModel, x: Tensor, which: object) -> Tensor:
    model.switch(which)  # type: ignore[arg-type]
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_is_fitted_saved_and_switched_without_losing_a_bit(
    network: tuple[str, int, dict[str, object]], tmp_path: Path
) -> None:
    name, size, options = network
    torch.manual_seed(0)
    x = torch.randn(4, 3, size, size)
    gm = graph.trace(zoo.build(name, pretrained=False, **options).module, (3, size, size))
    fold.fold(gm)
    chain = blocks.cut(gm, x[:2], name=name)
    on_latent_grid(chain)
    with torch.no_grad():
        expected = nn.Sequential(*[block.module for block in chain])(x)
    model = insert(chain, GROUPS.pairs, Placement(), STEPS)
    with passthrough(model), torch.no_grad():
        assert torch.equal(model(x), expected), "quantizers off is not bitwise the float network"
    calibrate(model, x)
    latents = {layer: weight.latent.clone() for layer, weight in weights_of(model)}
    ratios = {layer: weight.ratios.clone() for layer, weight in weights_of(model)}

    reconstruct_model(model, x, RECIPE, trainer)
    for layer, weight in weights_of(model):
        assert torch.equal(weight.latent, latents[layer]) and torch.equal(weight.ratios, ratios[layer]), layer
    before = logits(model, x, 8)
    assert not torch.equal(logits(model, x, 3), before)
    assert torch.equal(logits(model, x, 8), before), "8 -> 3 -> 8 is not bitwise the same"

    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    stored = dict(weights_of(loaded))
    for layer, weight in weights_of(model):
        for bits in weight.widths:
            assert torch.equal(stored[layer].at(bits), weight.at(bits)), f"{layer} at {bits} bits"
    for which in (3, "w5a5", 8, None):
        assert torch.equal(logits(loaded, x, which), logits(model, x, which)), which
