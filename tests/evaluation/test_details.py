"""What a page shows of a model: layers whose outputs are off, values with their levels, pictures that change."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest
import torch

from ptmq_lightning.compose.library import quantize
from ptmq_lightning.evaluation.details import changed, histograms, layer_errors, worst
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.model import MultiBitModel, at_bits
from ptmq_lightning.runtime.spec import BitWidth


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model(images: torch.Tensor) -> MultiBitModel:
    torch.manual_seed(0)
    network = build("digits_resnet", pretrained=False).module
    with torch.inference_mode(False), torch.no_grad():
        features: list[torch.Tensor] = []
        network.fc.register_forward_pre_hook(lambda _, given: features.append(given[0]))
        network(images)
        network.fc._forward_pre_hooks.clear()
        network.fc.bias.copy_(-network.fc.weight @ features[0].mean(0))  # else one class wins everywhere
    return quantize(network, images, bits=[["w2a2"], ["w8a8"]])


def test_a_layers_error_grows_with_fewer_bits_and_the_selection_stays(
    model: MultiBitModel, images: torch.Tensor
) -> None:
    with at_bits(model, "w8a8"):
        errors = layer_errors(model, images, ["w2a2", "w8a8"])
        assert model.active == model.resolve("w8a8")
    assert list(errors["w2a2"]) == list(model.layers)
    free = [name for name, layer in model.layers.items() if not layer.pinned]
    assert all(errors["w2a2"][name] > errors["w8a8"][name] > 0 for name in free)
    assert worst({"a": 0.1, "b": 0.3, "c": 0.2}, 2) == ["b", "c"]


def test_the_last_layers_error_is_that_of_the_logits(model: MultiBitModel, images: torch.Tensor) -> None:
    with torch.inference_mode(), at_bits(model, None):
        fp = model(images)
        model.switch("w2a2")
        made = model(images)
    expected = float((made - fp).square().sum() / fp.square().sum())
    last = list(model.layers)[-1]
    assert layer_errors(model, images, ["w2a2"])["w2a2"][last] == pytest.approx(expected, rel=1e-4)


def test_values_come_with_the_levels_of_their_width(model: MultiBitModel, images: torch.Tensor) -> None:
    name = next(name for name, layer in model.layers.items() if not layer.pinned)
    (found,) = histograms(model, images, [name], BitWidth(2, 2))
    assert sum(found["weight"]["counts"]) == model.layers[name].weights
    assert (found["weight"]["bits"], found["weight"]["limits"]) == (2, [-2, 1])
    low, high = found["input"]["limits"]
    assert high - low == 3 and found["input"]["step_size"] > 0


def test_pictures_that_change_at_most_widths_come_first(model: MultiBitModel, images: torch.Tensor) -> None:
    progress = Mock()
    found = list(changed(model, images, [0] * len(images), ["w2a2", "w8a8"], most=100, progress=progress))
    assert progress.mock_calls == [call(1, 3), call(2, 3), call(3, 3)]
    lost = [sum(index != classes["float"] for index in classes.values()) for _, _, classes in found]
    assert lost and lost == sorted(lost, reverse=True) and min(lost) > 0
