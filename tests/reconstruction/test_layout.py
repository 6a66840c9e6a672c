"""When features have their channels last, and that a fit then learns what it learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import ptmq_lightning as ptmq
from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.reconstruction.features import advance
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.reconstruction.store import MEMORY, OnDisk, Store
from ptmq_lightning.runtime.layout import channels_last
from tests.networks import RECIPE, images, mixer, small_model, trainer


@pytest.mark.parametrize(("wanted", "cpu", "gpu"), [("auto", 1, 0), ("always", 1, 1), ("never", 0, 0)])
def test_auto_is_for_cpus(wanted: str, cpu: int, gpu: int) -> None:
    config = configuration([f"trainer.channels_last={wanted}"]).trainer
    network = small_model()
    assert parts.channels_last(config, network, torch.device("cpu")) == cpu
    assert parts.channels_last(config, network, torch.device("cuda")) == gpu


def test_a_cpu_keeps_the_usual_order_where_the_other_one_breaks_gradients() -> None:
    """A convolution 1x1 behind a stride that reads fewer channels than a register holds: a crash else."""
    network = nn.Sequential(nn.Conv2d(3, 16, 1, stride=2), nn.ReLU(), nn.Conv2d(16, 8, 1, stride=2), nn.Flatten())
    model = ptmq.quantize(network.eval(), torch.randn(8, 3, 64, 64), bits=[["w4a4"], ["w8a8"]])
    for wanted in ("auto", "always"):
        config = configuration([f"trainer.channels_last={wanted}"]).trainer
        assert not parts.channels_last(config, model, torch.device("cpu"))
    assert parts.channels_last(config, model, torch.device("cuda"))
    ptmq.reconstruct(model, torch.randn(8, 3, 64, 64), iters=2, overrides=["recon.batch=4"])


@pytest.mark.parametrize("store", [None, "files"])
def test_a_fit_learns_the_same_in_both_layouts(store: str | None, tmp_path) -> None:
    """Without masks, which are drawn in the order of memory; for so few iterations that sums in another order, which
    differ by processor, have not grown."""
    recipe = replace(RECIPE, drop=0.0, mixer=mixer("none"), schedule=replace(RECIPE.schedule, iters=3))
    found = []
    for last in (False, True):
        kept: Store = MEMORY if store is None else OnDisk(tmp_path, torch.device("cpu"))
        model = small_model()
        reconstruct_model(model, images(), recipe, trainer, store=kept, channels_last=last)
        found.append(model.state_dict())
    for name, tensor in found[0].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[1][name], tensor, rtol=1e-3, atol=1e-5)
        else:
            assert (found[1][name] != tensor).float().mean() < 0.01, name


def test_features_stay_laid_out_from_block_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(block, layers, features, target, *rest):
        ahead = advance(block, layers, features, target, *rest)
        kept = [ahead.fp, *ahead.streams.values()]
        seen.append((len(target.shape), {channels_last(x[:2]) for x in kept}))
        return ahead

    monkeypatch.setattr("ptmq_lightning.reconstruction.reconstruct.advance", watch)
    recipe = replace(RECIPE, schedule=replace(RECIPE.schedule, iters=1))
    reconstruct_model(small_model(), images(), recipe, trainer, channels_last=True)
    assert (4, {True}) in seen and all(laid_out == {dims == 4} for dims, laid_out in seen)
