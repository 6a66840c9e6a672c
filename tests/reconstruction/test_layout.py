"""When features have their channels last, and that a fit then learns what it learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ptmq_lightning.compose.cli import configuration
from ptmq_lightning.config import parts
from ptmq_lightning.reconstruction.features import advance
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.reconstruction.store import MEMORY, OnDisk, Store
from ptmq_lightning.runtime.layout import channels_last
from tests.networks import RECIPE, images, mixer, small_model, trainer

ITERS = 20


@pytest.mark.parametrize(("wanted", "cpu", "gpu"), [("auto", 1, 0), ("always", 1, 1), ("never", 0, 0)])
def test_auto_is_for_cpus(wanted: str, cpu: int, gpu: int) -> None:
    config = configuration([f"trainer.channels_last={wanted}"]).trainer
    assert parts.channels_last(config, torch.device("cpu")) == cpu
    assert parts.channels_last(config, torch.device("cuda")) == gpu


@pytest.mark.parametrize("store", [None, "files"])
def test_a_fit_learns_the_same_in_both_layouts(store: str | None, tmp_path) -> None:
    """Without masks, which are drawn in the order of memory."""
    recipe = replace(RECIPE, drop=0.0, mixer=mixer("none"), schedule=replace(RECIPE.schedule, iters=ITERS))
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
