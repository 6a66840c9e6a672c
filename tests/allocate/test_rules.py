"""What a choice for the free layers decides for the others, and that no assignment costs more than was counted."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.allocate.rules import budget_of, complete, owners, pairs_of, weight_bits
from ptmq_lightning.allocate.sensitivity import free_layers
from ptmq_lightning.evaluation.cost import bit_ops, byte_prices, layer_bit_ops, layer_macs, size_bytes
from ptmq_lightning.models import blocks, graph
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.runtime.model import MultiBitModel
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import GROUPS, images, small_model


class Forked(nn.Module):
    """Two convolutions read one tensor, as a residual block with a projection has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.down, self.fc = (
            nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1), nn.Linear(6, 5)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(self.conv(x) + self.down(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def forked() -> MultiBitModel:
    torch.manual_seed(0)
    made = insert(blocks.cut(graph.trace(Forked().eval(), (3, 8, 8)), images(2)), GROUPS.pairs, Placement(), StepSize())
    calibrate(made, images(4))
    return made


def test_the_owner_of_a_shared_input_is_found(forked: MultiBitModel) -> None:
    assert owners(forked) == {"down": "conv"}
    assert owners(small_model()) == {}


def test_a_layer_has_the_activations_of_its_inputs_owner(forked: MultiBitModel) -> None:
    chosen = complete(forked, {"conv": BitWidth(4, 4), "down": BitWidth(3, 8)})
    assert chosen["conv"] == BitWidth(4, 4) and chosen["down"] == BitWidth(3, 4)
    forked.switch(chosen)


def test_free_pairs_are_all_combinations_of_widths(forked: MultiBitModel) -> None:
    assert pairs_of(forked, "tied") == GROUPS.pairs
    free = pairs_of(forked, "free")
    assert len(free) == len(set(free)) == 25 and BitWidth(3, 8) in free and max(free) == BitWidth(8, 8)


@pytest.mark.parametrize("activations", ["tied", "free"])
@pytest.mark.parametrize("which", ["small", "forked"])
def test_an_assignment_never_costs_more_than_was_counted(which: str, activations: str, forked: MultiBitModel) -> None:
    model = forked if which == "forked" else small_model(placement=Placement(gelu="table"))
    pairs, draw = pairs_of(model, activations), random.Random(0)
    macs, (fixed, price) = layer_macs(model, images(1)), byte_prices(model)
    operations = budget_of(
        model, pairs, lambda name, pair: layer_bit_ops(model.layers[name], macs[name], pair), "{:g}", 0
    )
    size = budget_of(model, pairs, price, "{:g}", 0, fixed=fixed)
    for _ in range(20):
        choice = {name: draw.choice(pairs) for name in free_layers(model)}
        assignment = complete(model, choice)
        assert bit_ops(macs, assignment, model.layers) <= operations.spent(choice)
        assert size_bytes(model, assignment) <= size.spent(choice)
        assert weight_bits(model, pairs, 4.0).spent(choice) == pytest.approx(
            assignment.average(model)[0] * sum(model.layers[name].weights for name in choice)
        )


def test_a_uniform_choice_costs_exactly_what_is_counted() -> None:
    model = small_model()
    macs, (fixed, price) = layer_macs(model, images(1)), byte_prices(model)
    operations = budget_of(
        model, model.pairs, lambda name, pair: layer_bit_ops(model.layers[name], macs[name], pair), "{:g}", 0
    )
    size = budget_of(model, model.pairs, price, "{:g}", 0, fixed=fixed)
    for pair in model.pairs:
        choice = dict.fromkeys(free_layers(model), pair)
        assignment = complete(model, choice)
        assert size.spent(choice) == size_bytes(model, assignment)
        assert operations.spent(choice) == bit_ops(macs, assignment, model.layers)
