"""A block taken as layers: each unit is the float block's own arithmetic, and what it learns ends up in the block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from ptmq_lightning.quant.insert import Placement
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.reconstruction.recipe import Recipe, Schedule
from ptmq_lightning.reconstruction.reconstruct import BlockResult, reconstruct_model
from ptmq_lightning.reconstruction.units import UNITS, Unit
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, quantizers_of, weights_of
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.networks import GROUPS, images, mixer, objective, small_model, trainer

RECIPE = Recipe(
    GROUPS,
    mixer("matched"),
    objective("mse"),
    RoundingKeys("shared"),
    Schedule(iters=4, batch=4, log_every=2),
    unit="layer",
)
RESIDUAL, ATTENTION = 1, 3  # blocks of the small network


def input_of(model: MultiBitModel, index: int) -> torch.Tensor:
    with passthrough(model), torch.no_grad():
        return nn.Sequential(*list(model.blocks)[:index])(images(4))


def units(model: MultiBitModel, index: int, what: str) -> Iterator[Unit]:
    return UNITS[what].units(model.chain[index], nn.Sequential(*list(model.blocks)[index + 1 :]))


def targets(unit: nn.Module) -> list[str]:
    return [str(node.target) for node in unit.graph.nodes if node.op.startswith("call")]  # type: ignore[union-attr, operator]


def test_a_whole_block_is_one_unit() -> None:
    model = small_model()
    (unit,) = units(model, RESIDUAL, "block")
    assert (unit.name, unit.module, unit.before) == ("layer1.0", model.blocks[RESIDUAL], None)


def test_a_layer_comes_with_its_activation_function_and_its_own_quantizer() -> None:
    first, second = units(small_model(), RESIDUAL, "layer")
    assert (first.name, second.name) == ("layer1.0.conv1", "layer1.0.conv2")
    assert len(targets(first.module)) == 3 and "relu" in targets(first.module)[-1]
    # behind conv2 the shortcut is added: no activation function of its own
    assert targets(second.module) == ["quantizers.layer1_0_conv2", "layer1.0.conv2"]
    assert first.before is None and second.before is not None


@pytest.mark.parametrize("index", [RESIDUAL, ATTENTION])
def test_units_compute_the_float_blocks_own_tensors(index: int) -> None:
    model = small_model()
    block, x = model.blocks[index], input_of(model, index)
    seen: dict[str, torch.Tensor] = {}
    for name, _ in weights_of(block):
        block.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    with torch.no_grad():
        whole = block(x)
        expected = dict(seen)
        for unit in units(model, index, "layer"):
            made = unit.module(x if unit.before is None else unit.before(x))
            assert torch.equal(seen[unit.name], expected[unit.name])
            assert torch.equal(unit.rest[0](made, x), whole)


def test_products_of_activations_are_no_units() -> None:
    names = [unit.name for unit in units(small_model(), ATTENTION, "layer")]
    assert names == ["blocks.0.qkv", "blocks.0.proj"]


def test_layers_learn_in_turn_and_the_block_gets_their_steps() -> None:
    model = small_model(placement=Placement(edge="none"))
    before = {path: quantizer.steps.clone() for path, quantizer in quantizers_of(model)}
    reconstruct_model(model, images(), RECIPE, trainer)
    assert all(type(weight) is MultiBitWeight and weight.kind == "planes" for _, weight in weights_of(model))
    for path, quantizer in quantizers_of(model):
        assert type(quantizer) is ActivationQuantizer
        assert torch.equal(quantizer.steps, before[path]) == ("matmul" in path), path


@pytest.mark.slow
def test_layer_by_layer_beats_nearest_rounding_at_the_narrowest_width() -> None:
    nearest, learned, x = small_model(), small_model(), images(64)
    recipe = replace(RECIPE, schedule=Schedule(iters=120, batch=16, lambda_rounding=1e-3))
    reconstruct_model(learned, x, recipe, trainer)
    with passthrough(nearest):
        target = nearest(x)
    with at_bits(nearest, 3), at_bits(learned, 3):
        assert (learned(x) - target).square().mean() < (nearest(x) - target).square().mean()


def test_blocks_count_their_units_steps_and_a_resumed_run_makes_the_same_draws() -> None:
    kept: list[tuple[int, BlockResult]] = []
    whole, resumed = small_model(), small_model()
    reconstruct_model(whole, images(), RECIPE, trainer, after_block=lambda index, result: kept.append((index, result)))
    units_per_block = [1, 2, 2, 2, 1]
    expected = [4 * sum(units_per_block[: n + 1]) for n in range(5)]
    assert [(index, result.iters) for index, result in kept] == list(enumerate(expected))
    for index in range(3):
        resumed.blocks[index] = whole.blocks[index]
    reconstruct_model(resumed, images(), RECIPE, trainer, from_block=3)
    for (name, one), (_, other) in zip(weights_of(whole), weights_of(resumed), strict=True):
        assert torch.equal(one.rounding, other.rounding), name


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        replace(RECIPE, unit="stage")
    assert all(name in str(error.value) for name in ("stage", *UNITS))
