"""The library's functions do what the command does, on a network and images in memory."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import hydra
import pytest
import timm
import torch
from hydra.core.global_hydra import GlobalHydra
from torch.utils.data import DataLoader, TensorDataset

from ptmq_lightning.compose.library import evaluate, quantize, reconstruct
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.errors import ConfigError, DataError, ModelError
from ptmq_lightning.runtime.model import MultiBitModel, passthrough

GROUPS = [["w3a3", "w4a4"], [(8, 8)]]


def _images() -> torch.Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("digits_resnet", pretrained=False).module


@pytest.fixture
def images() -> torch.Tensor:
    return _images()


@pytest.fixture
def network() -> torch.nn.Module:
    return _network()


@pytest.fixture(scope="module")
def quantized() -> MultiBitModel:
    """Made once; a test gets a copy of it."""
    return quantize(_network(), _images(), bits=GROUPS)


@pytest.fixture
def model(quantized: MultiBitModel) -> MultiBitModel:
    return copy.deepcopy(quantized)


def test_a_quantized_model_runs_at_exactly_the_pairs_asked_for(model: MultiBitModel) -> None:
    assert [str(pair) for pair in model.pairs] == ["w3a3", "w4a4", "w8a8"]


@pytest.mark.parametrize("training", [False, True])
def test_the_network_itself_stays_as_it_is(network: torch.nn.Module, images: torch.Tensor, training: bool) -> None:
    network.train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantize(network, images, bits=GROUPS)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network.training is training


def test_names_of_classes_travel_with_the_model(network: torch.nn.Module, images: torch.Tensor) -> None:
    assert quantize(network, images, bits=GROUPS, classes=list("abcdefghij")).info.classes == tuple("abcdefghij")


def test_an_artifact_tells_only_what_is_known_of_its_images(network: torch.nn.Module, images: torch.Tensor) -> None:
    unknown = quantize(network, images, bits=GROUPS).info
    assert (unknown.preprocessing, unknown.input_size) == (None, (3, 16, 16))
    told = {"mean": [0.5] * 3, "std": [0.25] * 3}
    given = quantize(network, images, bits=GROUPS, preprocessing=told).info.preprocessing
    assert given is not None and (given.mean, given.input_size) == ((0.5,) * 3, (3, 16, 16))
    named = build("digits_resnet", pretrained=False)
    assert quantize(named, images, bits=GROUPS).info.preprocessing == named.preprocessing
    of_timm = timm.create_model("resnet18", num_classes=10, layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), stem_width=8)
    own = quantize(of_timm, torch.rand(2, 3, 32, 32), bits=[[4]]).info.preprocessing
    assert own is not None and own.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ModelError) as caught:
        quantize(network, images, bits=GROUPS, preprocessing={"meen": [0.5] * 3})
    assert str(caught.value).startswith("preprocessing.meen is no key (nearest: mean); expected input_size, mean, std")


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ([], "list"),
        (torch.rand(3, 16, 16), "torch.float32 (3, 16, 16)"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "torch.uint8 (2, 3, 16, 16)"),
    ],
)
def test_other_images_than_one_float_tensor_are_refused(
    network: torch.nn.Module, model: MultiBitModel, wrong: Any, found: str
) -> None:
    for call in (lambda: quantize(network, wrong, bits=GROUPS), lambda: reconstruct(model, wrong, iters=1)):
        with pytest.raises(DataError) as caught:
            call()
        assert str(caught.value).startswith(f"found images of {found}; expected one float tensor (N, C, H, W)")


def test_a_fit_leaves_the_process_as_it_was(model: MultiBitModel, images: torch.Tensor) -> None:
    def state() -> tuple[Any, ...]:
        level = logging.getLogger("lightning.pytorch").level
        torch_state = torch.random.get_rng_state().sum().item()
        return torch.are_deterministic_algorithms_enabled(), level, torch_state, random.getstate()

    before = state()
    reconstruct(model, images, iters=1, overrides=["recon.batch=8"])
    assert state() == before


def test_the_library_works_inside_a_hydra_application(network: torch.nn.Module, images: torch.Tensor) -> None:
    with hydra.initialize_config_module("ptmq_lightning.conf", version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        quantize(network, images, bits=GROUPS)
        assert GlobalHydra.instance().hydra is outer


def test_reconstruct_changes_the_quantized_model_and_not_the_float_one(
    model: MultiBitModel, images: torch.Tensor
) -> None:
    with torch.no_grad():
        model.switch(4)
        before = model(images)
        with passthrough(model):
            float_before = model(images)
        results = reconstruct(model, images, iters=3, overrides=["recon.batch=8"])
        model.switch(4)
        assert not torch.equal(model(images), before)
        with passthrough(model):
            assert torch.equal(model(images), float_before)
    assert [result.name for result in results] == list(model.block_names)


def test_options_are_those_of_the_command(model: MultiBitModel, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        reconstruct(model, images, mixer="case9", iters=1)
    assert str(caught.value) == (
        "mixer=case9 is no option (nearest: case3, case2, case1); expected mixer=case1|case2|case3|float|matched|none"
    )


def test_evaluate_gives_a_row_for_each_pair(model: MultiBitModel, images: torch.Tensor) -> None:
    loader = DataLoader(TensorDataset(images, torch.zeros(24, dtype=torch.long)), batch_size=10)
    evaluation = evaluate(model, loader, ["w8a8", 3])
    assert [row.config for row in evaluation.rows] == ["w8a8", "w3a3"]
    assert evaluation.images == 24
    assert [row.config for row in evaluate(model, loader, 4).rows] == ["w4a4"]


def test_a_method_that_needs_labels_is_refused(model: MultiBitModel, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        reconstruct(model, images, method="multiquant")
    assert str(caught.value) == (
        "method=multiquant trains with labels, and reconstruct has images alone; run it as a command: python train.py "
        "method=multiquant"
    )
