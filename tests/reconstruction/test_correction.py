"""A corrected bias takes a layer's mean rounding error away, is stored, and goes when the layer learns again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.artifact.graph import describe, rebuild
from ptmq_lightning.quant.layers import MaskBank
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.reconstruction import commit
from ptmq_lightning.reconstruction.correction import correct_biases, mean_inputs, means_kept
from ptmq_lightning.reconstruction.reconstruct import reconstruct_model
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ArtifactError
from ptmq_lightning.runtime.hooks import watched_inputs
from ptmq_lightning.runtime.layers import WeightLayer, swap_channels, twin_of
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, passthrough, select, weights_of
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.networks import images, small_model, trainer
from tests.reconstruction.test_reconstruct import RECIPE

NEAREST = replace(RECIPE, rounding=RoundingKeys("nearest"), bias_correction="after")


def layers_of(model: nn.Module) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, WeightLayer)}


@pytest.fixture(scope="module")
def corrected() -> MultiBitModel:
    """A model rounded to nearest, for tests that only read it."""
    model = small_model()
    reconstruct_model(model, images(), NEAREST, trainer)
    return model


@torch.no_grad()
def float_inputs(model: MultiBitModel, x: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.__setitem__(name, inputs[0]))
        for name, layer in layers_of(model).items()
    ]
    with passthrough(model):
        model(x)
    for handle in hooks:
        handle.remove()
    return seen


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_every_layers_mean_output_at_a_width_is_the_float_one(bits: int, corrected: MultiBitModel) -> None:
    model, x = corrected, images()
    inputs = float_inputs(model, x)
    for name, layer in layers_of(model).items():
        exact, found = layer.weight.at(None), layer.weight
        width = bits if bits in found.widths else found.widths[0]  # type: ignore[union-attr, operator, index]
        wanted = layer.compute(inputs[name], exact, layer.bias).movedim(layer.channel, -1).flatten(0, -2).mean(0)
        layer.weight.select(width)
        mean = layer(inputs[name]).movedim(layer.channel, -1).flatten(0, -2).mean(0)
        layer.weight.select(None)
        torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-5)  # float32 means of outputs of size one


def test_the_float_network_stays_as_it_is(corrected: MultiBitModel) -> None:
    before, x = small_model(calibrated=False), images()
    with passthrough(before), passthrough(corrected), torch.no_grad():
        assert torch.equal(corrected(x), before(x))


def test_without_the_option_no_layer_has_biases_of_its_own() -> None:
    model = small_model()
    reconstruct_model(model, images(), replace(NEAREST, bias_correction="none"), trainer)
    assert all(layer.biases is None for layer in layers_of(model).values())


def test_biases_are_saved_and_loaded_to_the_last_bit(corrected: MultiBitModel, tmp_path: Path) -> None:
    model, x = corrected, images()
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    for which in (3, "w5a5", 8, None):
        with at_bits(model, which), at_bits(loaded, which), torch.no_grad():
            assert torch.equal(loaded(x), model(x)), which


def test_biases_that_fit_no_width_are_refused(corrected: MultiBitModel) -> None:
    data, tensors = describe(corrected.blocks[1])  # type: ignore[arg-type]
    tensors["layer1.0.conv1.biases"] = tensors["layer1.0.conv1.biases"][:1]
    with pytest.raises(ArtifactError) as error:
        rebuild(data, tensors)
    assert str(error.value) == (
        "a graph whose layer 'layer1.0.conv1' has biases of shape (1, 8) is refused; expected one for each step. Use "
        "an artifact that this version wrote, from a source you trust."
    )


def test_a_layer_that_learns_again_starts_from_its_own_bias() -> None:
    block = small_model().blocks[1]
    correct_biases(block, torch.randn(4, 8, 8, 8), batch=2)
    commit.make_trainable(block, RECIPE, MaskBank(0))
    assert all(layer.biases is None for layer in layers_of(block).values())


@pytest.mark.parametrize("when", ["after", "during"])
def test_a_corrected_run_taken_up_from_a_saved_block_ends_with_the_same_tensors(when: str, tmp_path: Path) -> None:
    whole, resumed = small_model(), small_model()
    recipe = replace(RECIPE, bias_correction=when)
    reconstruct_model(
        whole, images(), recipe, trainer,
        after_block=lambda i, _: commit.save_block(whole.blocks[i], tmp_path / f"{i}.safetensors"),
    )  # fmt: skip
    for index in range(2):
        commit.load_block(resumed.blocks[index], tmp_path / f"{index}.safetensors")
    reconstruct_model(resumed, images(), recipe, trainer, from_block=2)
    expected = whole.state_dict()
    assert any(key.endswith(".biases") for key in expected) and set(expected) == set(resumed.state_dict())
    assert all(torch.equal(tensor, expected[key]) for key, tensor in resumed.state_dict().items())


def test_a_layer_without_a_bias_gets_biases() -> None:
    block = small_model(calibrated=False).blocks[1]
    layer = block.get_submodule("layer1.0.conv1")
    layer.bias = None
    correct_biases(block, torch.randn(4, 8, 8, 8), batch=2)
    assert layer.biases is not None and layer.biases.shape == dict(weights_of(block))["layer1.0.conv1"].steps.shape


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("kind", ["shared", "flexround"])
@torch.no_grad()
def test_during_the_fit_every_layers_mean_output_is_the_float_one_whatever_the_rounding(kind: str, bits: int) -> None:
    block, x = small_model().blocks[1], torch.randn(16, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    means = mean_inputs(block, x, batch=8)
    commit.make_trainable(block, replace(RECIPE, rounding=RoundingKeys(kind)), None)
    for parameter in block.parameters():
        parameter.add_(torch.randn(parameter.shape) / 10)  # somewhere in the middle of a fit
    select(block, None)
    wanted = mean_outputs(block, x, None)
    with means_kept(block, means):
        found = mean_outputs(block, x, bits)
    assert found.keys() == wanted.keys() and len(found) == 2
    for name, mean in found.items():
        torch.testing.assert_close(mean, wanted[name], rtol=0, atol=1e-5)  # float32 means of outputs of size one
    assert not all(torch.equal(mean, wanted[name]) for name, mean in mean_outputs(block, x, bits).items())


LAYERS = {
    "strided": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (4, 9, 9)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5)),
    "linear": (nn.Linear(5, 3), (7, 5)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_output_of_every_kind_of_layer_is_kept(kind: str) -> None:
    layer, shape = LAYERS[kind]
    n, step = grid.latent(layer.weight if kind != "transposed" else swap_channels(layer.weight, 2))
    weight = MultiBitWeight(n.detach(), step, (2, 8), torch.stack([step * 400, step * 5]))
    block, x = nn.Sequential(twin_of(layer).of(layer, weight)), torch.rand(16, *shape)
    means, wanted = mean_inputs(block, x, batch=8), mean_outputs(block, x, None)["0"]
    with means_kept(block, means):
        found = [mean_outputs(block, x, bits)["0"] for bits in (2, 8, None)]
    for mean in found:
        torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-5)  # float32 means of outputs of size one
    assert float((mean_outputs(block, x, 2)["0"] - wanted).abs().max()) > 1e-3


def mean_outputs(block: nn.Module, x: Tensor, bits: int | None) -> dict[str, Tensor]:
    """Of each layer at a width, on its float inputs."""
    means = {}
    inputs: dict[str, Tensor] = {}
    with watched_inputs(layers_of(block), inputs.__setitem__):
        select(block, None)
        block(x)
    for name, layer in layers_of(block).items():
        layer.weight.select(bits)
        means[name] = layer(inputs[name]).movedim(layer.channel, -1).flatten(0, -2).mean(0)
        layer.weight.select(None)
    return means


def test_gradients_reach_the_weight_through_the_correction() -> None:
    block, x = small_model().blocks[1], torch.randn(16, 8, 8, 8)
    means = mean_inputs(block, x, batch=8)
    commit.make_trainable(block, RECIPE, None)
    layer = layers_of(block)["layer1.0.conv1"]
    layer.weight.select(3)
    with means_kept(block, means):
        layer(means["layer1.0.conv1"]).sum().backward()
    # The mean output is the float network's: no change of the rounding moves it.
    assert float(layer.weight.v[0].grad.abs().max()) < 1e-4


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_kept_during_the_fit_the_biases_are_those_of_the_committed_codes(unit: str) -> None:
    model, expected = small_model(), small_model()
    reconstruct_model(model, images(), replace(RECIPE, bias_correction="during", unit=unit), trainer)
    assert all(layer.biases is not None for layer in layers_of(model).values())
    assert not any("compute" in vars(layer) for layer in layers_of(model).values())
    (first, layer), *_ = layers_of(model).items()
    bias = layer.biases.clone()
    correct_biases(model.blocks[0], images(), batch=8)
    assert torch.equal(layer.biases, bias) and layers_of(expected)[first].biases is None


def test_a_second_pass_corrects_no_bias_twice() -> None:
    model = small_model()
    first = replace(RECIPE, bias_correction="during", quantize_inputs=False)
    reconstruct_model(model, images(), first, trainer)
    before = {name: layer.biases.clone() for name, layer in layers_of(model).items()}
    reconstruct_model(model, images(), replace(NEAREST, bias_correction="during"), trainer)
    for name, layer in layers_of(model).items():
        torch.testing.assert_close(layer.biases, before[name], rtol=0, atol=1e-6)  # the codes are the same
