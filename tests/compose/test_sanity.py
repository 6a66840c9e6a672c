"""A float network that cannot see is found before the fit, and nobody guesses preprocessing in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ptmq_lightning.compose.sanity import count_classes, tell_preprocessing, try_float_network
from ptmq_lightning.data.sources import Sources, open_data
from ptmq_lightning.models import zoo
from ptmq_lightning.models.zoo import Network
from ptmq_lightning.runtime.errors import ModelError


@pytest.fixture(scope="module")
def digits() -> Sources:
    return open_data("digits", preprocessing=zoo.build("digits_resnet", pretrained=False).preprocessing)


class Answers(nn.Module):
    """Tells a share of the evaluation images right: it knows their labels by their pixels."""

    def __init__(self, sources: Sources, share: float) -> None:
        super().__init__()
        self.labels = {x.numpy().tobytes(): y for x, y in (sources.val[i] for i in range(len(sources.val)))}
        self.share = share

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        right = torch.tensor([self.labels[image.numpy().tobytes()] for image in x])
        wrong = torch.arange(len(x)) % 10 >= 10 * self.share
        return nn.functional.one_hot(torch.where(wrong, (right + 1) % 10, right), 10).float()


def network(sources: Sources, share: float) -> Network:
    own = zoo.build("digits_resnet", pretrained=False)
    return Network(Answers(sources, share), "answers", own.preprocessing, "made here")


def test_a_network_that_is_as_good_as_expected_passes(digits: Sources) -> None:
    assert try_float_network(network(digits, 0.9), digits, 90.0, 100) == pytest.approx(90, abs=3)


def test_a_network_that_is_worse_than_expected_is_refused(digits: Sources) -> None:
    with pytest.raises(ModelError, match=r"expected 90 \(model.expected_top1\)") as error:
        try_float_network(network(digits, 0.4), digits, 90.0, 100)
    assert "given with the network" in str(error.value)


def test_chance_is_said_out_loud(digits: Sources, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        try_float_network(network(digits, 0.9), digits, None, 100)
        assert not caplog.messages
        try_float_network(network(digits, 0.1), digits, None, 100)
    assert "no better than chance" in caplog.messages[0]


@pytest.mark.parametrize(("given", "warned"), [(None, True), ({"mean": [0.1, 0.2, 0.3]}, False)])
def test_a_default_for_somebody_elses_weights_is_a_warning(
    given: dict[str, list[float]] | None, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = zoo.build("resnet18", pretrained=False, num_classes=3).module.state_dict()
    safetensors.torch.save_file(own, tmp_path / "mine.safetensors")
    built = zoo.build("resnet18", checkpoint=tmp_path / "mine.safetensors", num_classes=3, preprocessing=given)
    with caplog.at_level(logging.INFO):
        tell_preprocessing(built)
    assert ("does not say how" in caplog.text) is warned
    assert ("model.preprocessing (mean)" in caplog.text) is not warned


def test_images_of_a_size_that_the_network_does_not_take_are_refused() -> None:
    network = zoo.build("coat_lite_tiny", pretrained=False, preprocessing={"input_size": [3, 64, 64]})
    with pytest.raises(ModelError, match=r"coat_lite_tiny does not take images of \(3, 64, 64\).*input_size"):
        count_classes(network, torch.zeros(1, 3, 64, 64))
