"""Wrapped, pruned and half-precision networks are made plain exactly, or one message says what to give instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from ptmq_lightning.models import graph
from ptmq_lightning.models.unwrap import only_tensor, plain
from ptmq_lightning.runtime.errors import ModelError
from tests.networks import images, small_network


class Says(nn.Module):
    """What `how` makes of the small network's logits."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = small_network(), how

    def forward(self, x: Tensor) -> Any:
        y = self.inner(x)
        return {"tuple": (y, None), "list": [y], "dict": {"logits": y}, "two": {"logits": y, "aux": 2 * y}}[self.how]


def test_a_plain_network_is_itself() -> None:
    network = small_network()
    assert plain(network) is network


def test_compiled_and_parallel_networks_are_unwrapped() -> None:
    network = small_network()
    assert plain(nn.DataParallel(network)) is network
    assert plain(torch.compile(nn.DataParallel(network))) is network  # type: ignore[arg-type]


def test_masks_are_multiplied_out_and_the_network_keeps_its_own() -> None:
    network, x = small_network(), images(2)
    prune.l1_unstructured(network.conv1, "weight", amount=0.5)
    with torch.no_grad():
        wanted = network(x)
    made = plain(network)
    assert not any("mask" in name or "orig" in name for name, _ in (*made.named_parameters(), *made.named_buffers()))
    assert hasattr(network.conv1, "weight_mask")
    with torch.no_grad():
        assert torch.equal(made(x), wanted) and torch.equal(network(x), wanted)
        assert torch.equal(graph.trace(made, (3, 8, 8))(x), wanted)


def test_parametrized_weights_become_plain_ones() -> None:
    network, x = small_network(), images(2)
    weight_norm(network.fc)
    made = plain(network)
    assert "fc.weight" in dict(made.named_parameters())
    with torch.no_grad():
        assert torch.equal(made(x), network(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_and_keep_their_values(dtype: torch.dtype) -> None:
    network = small_network().to(dtype)
    made = plain(network)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    for own, given in zip(made.parameters(), network.parameters(), strict=True):
        assert torch.equal(own.to(dtype), given)


def test_what_cannot_be_made_plain_is_named() -> None:
    with pytest.raises(ModelError, match="scripted"):
        plain(torch.jit.trace(small_network(), images(2)))
    with pytest.raises(ModelError, match=r"conv1\.weight.*float64"):
        plain(small_network().double())
    with pytest.raises(ModelError, match="lazy"):
        plain(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.parametrize("how", ["tuple", "list", "dict"])
def test_the_only_tensor_of_an_output_is_the_output(how: str) -> None:
    network, x = Says(how), images(2)
    with torch.no_grad():
        assert torch.equal(graph.trace(network, (3, 8, 8))(x), only_tensor(network(x)))


def test_an_output_of_several_tensors_is_refused_and_each_is_named() -> None:
    with pytest.raises(ModelError) as error:
        graph.trace(Says("two"), (3, 8, 8))
    assert all(part in str(error.value) for part in ("['logits'] (2, 5)", "['aux'] (2, 5)", "forward returns"))
