"""The library's functions do what the command does, on a network and images in memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ptmq_lightning.compose.library import evaluate, quantize, reconstruct
from ptmq_lightning.models.zoo import build
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import MultiBitModel, passthrough

GROUPS = [["w3a3", "w4a4"], [(8, 8)]]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("digits_resnet", pretrained=False).module


@pytest.fixture
def model(network: torch.nn.Module, images: torch.Tensor) -> MultiBitModel:
    return quantize(network, images, bits=GROUPS)


def test_a_quantised_model_runs_at_exactly_the_pairs_asked_for(model: MultiBitModel) -> None:
    assert [str(pair) for pair in model.widths] == ["w3a3", "w4a4", "w8a8"]


def test_the_network_itself_stays_as_it_is(network: torch.nn.Module, images: torch.Tensor) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    quantize(network, images, bits=GROUPS)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_reconstruct_changes_the_quantised_model_and_not_the_float_one(
    model: MultiBitModel, images: torch.Tensor
) -> None:
    with torch.no_grad():
        model.switch(4)
        before = model(images)
        with passthrough(model):
            float_before = model(images)
        results = reconstruct(model, images, steps=3, overrides=["recon.batch=8"])
        model.switch(4)
        assert not torch.equal(model(images), before)
        with passthrough(model):
            assert torch.equal(model(images), float_before)
    assert [result.name for result in results] == list(model.block_names)


def test_options_are_those_of_the_command(model: MultiBitModel, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        reconstruct(model, images, mixer="case9", steps=1)
    assert str(caught.value) == (
        "mixer=case9 is no option (nearest: case3, case2, case1); expected mixer=case1|case2|case3|float|matched|none"
    )


def test_evaluate_gives_a_row_for_each_pair(model: MultiBitModel, images: torch.Tensor) -> None:
    loader = DataLoader(TensorDataset(images, torch.zeros(24, dtype=torch.long)), batch_size=10)
    evaluation = evaluate(model, loader, ["w8a8", 3])
    assert [row.config for row in evaluation.rows] == ["w8a8", "w3a3"]
    assert evaluation.images == 24


def test_a_method_that_needs_labels_is_refused(model: MultiBitModel, images: torch.Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        reconstruct(model, images, method="multiquant")
    assert str(caught.value) == (
        "method=multiquant trains with labels, and reconstruct has images alone; run it as a command: python train.py "
        "method=multiquant"
    )
