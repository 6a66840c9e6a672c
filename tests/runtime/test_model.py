"""A model switches between its widths without changing, and says what it cannot do."""

from __future__ import annotations

import pytest
import torch

from ptmq_lightning.quant.insert import Placement
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import at_bits, passthrough, weights_of
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth
from ptmq_lightning.runtime.weights import CommittedWeight
from tests.networks import images, small_model


def test_there_and_back_is_bitwise_the_same() -> None:
    model, x = small_model(), images()
    model.switch(8)
    before = model(x)
    model.switch(3)
    assert not torch.equal(model(x), before)
    model.switch(8)
    assert torch.equal(model(x), before)


def test_switching_changes_no_stored_tensor() -> None:
    model, x = small_model(), images()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for which in (3, 8, None, "w4a4"):
        model.switch(which)
        model(x)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_pinned_layers_keep_eight_bits_and_the_others_follow() -> None:
    model = small_model()
    assignment = model.resolve(3)
    assert assignment["conv1"] == BitWidth(8, 8) and assignment["fc"] == BitWidth(8, 8)
    assert assignment["layer1.0.conv1"] == BitWidth(3, 3)
    assert assignment["blocks.0.matmul2"] == BitWidth(8, 3)  # attention probabilities at 8, values at 3


def test_at_bits_restores_the_selection_also_after_an_error() -> None:
    model = small_model()
    model.switch(8)
    before = model.active
    with pytest.raises(RuntimeError, match="stop"), at_bits(model, 3):
        raise RuntimeError("stop")
    assert model.active == before
    assert {weight.bits for _, weight in weights_of(model)} == {8}


def test_passthrough_is_the_chain_of_float_blocks() -> None:
    model, x = small_model(), images()
    fresh = small_model(calibrated=False)  # never switched
    model.switch(3)
    with passthrough(model):
        assert torch.equal(model(x), fresh(x))


def test_a_mixed_assignment_by_name_and_by_layer() -> None:
    model, x = small_model(), images()
    uniform = model.resolve(4)
    mixed = BitAssignment(tuple((n, BitWidth(8, 8) if n == "layer1.0.conv2" else w) for n, w in uniform.items()))
    model.assignments["mine"] = mixed
    with at_bits(model, "mine"):
        named = model(x)
    with at_bits(model, dict(mixed.items())):
        assert torch.equal(model(x), named)
    with at_bits(model, 4):
        assert not torch.equal(model(x), named)


def test_a_width_it_was_not_prepared_for_is_refused_and_changes_nothing() -> None:
    model = small_model()
    model.switch(8)
    with pytest.raises(ConfigError) as error:
        model.switch(7)
    assert str(error.value) == (
        "the weight has no width of 7 bits; it was prepared for 3, 4, 5, 6, 8. Choose one of these."
    )
    assert {weight.bits for _, weight in weights_of(model)} == {8}


def test_a_number_is_the_one_pair_with_these_weight_bits() -> None:
    model = small_model(pairs=[BitWidth(2, 4), BitWidth(4, 4), BitWidth(4, 8), BitWidth(8, 6), BitWidth(8, 7)])
    assert model.resolve(2) == model.resolve("w2a4") and model.resolve(4) == model.resolve("w4a4")
    with pytest.raises(ConfigError, match="w8a6, w8a7"):
        model.resolve(8)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        small_model().switch("mixed_4.0")
    assert str(error.value) == (
        "found the width 'mixed_4.0'; expected one of w3a3, w4a4, w5a5, w6a6, w8a8, or a number of weight bits that "
        "one pair has (3, 4, 5, 6, 8)."
    )


def test_an_assignment_that_misses_a_layer_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        small_model().switch({"layer1.0.conv1": 4})
    assert str(error.value).startswith("found an assignment with 0 unknown and ")


@pytest.mark.parametrize("named", [False, True])
def test_a_ready_assignment_that_does_not_fit_the_layers_is_refused_and_changes_nothing(named: bool) -> None:
    model = small_model()
    model.switch(8)
    layers = [(name, width) for name, width in model.resolve(4).items() if name != "fc"]
    which = BitAssignment((*layers, ("head", BitWidth(4, 4))))
    model.assignments["other"] = which
    with pytest.raises(ConfigError) as error:
        model.switch("other" if named else which)
    assert str(error.value) == (
        "found an assignment with 1 unknown and 1 missing layers, first 'head'; expected a width for each of the "
        f"{len(model.layers)} layers. Make it of this model's own layers."
    )
    assert model.active == model.resolve(8) and {weight.bits for _, weight in weights_of(model)} == {8}


def test_a_switch_that_stops_half_way_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = small_model(), CommittedWeight.made

    def no_memory(weight: CommittedWeight) -> torch.Tensor:
        if weight.bits == 4:
            raise RuntimeError("not enough memory")
        return made(weight)

    model.switch(8)
    monkeypatch.setattr(CommittedWeight, "made", no_memory)
    with pytest.raises(RuntimeError, match="not enough memory"):
        model.switch(4)
    assert model.active == model.resolve(8) and {weight.bits for _, weight in weights_of(model)} == {8}


@pytest.mark.parametrize("edge", ["qdrop", "brecq", "8bit", "none"])
def test_edge_rules_pin_what_they_say(edge: str) -> None:
    model = small_model(placement=Placement(edge=edge))
    first, second, last = (model.resolve(3)[name] for name in ("conv1", "layer1.0.conv1", "fc"))
    assert first.w == last.w == (3 if edge == "none" else 8)
    assert last.a == (3 if edge == "none" else 8)
    assert second.a == (8 if edge == "brecq" else 3)
    quantized_image = any(getattr(m, "owner", "") == "conv1" for m in model.modules())
    assert quantized_image == (edge == "8bit")


def test_every_layer_is_in_exactly_one_block_of_the_chain() -> None:
    model = small_model()
    assert [block.name for block in model.chain] == list(model.block_names)
    assert [name for block in model.chain for name in block.layers] == list(model.layers)
    assert all(info.block == index for index, block in enumerate(model.chain) for info in block.layers.values())
