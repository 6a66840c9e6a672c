"""Quantizers stand where they should, once per tensor, at the widths they should take."""

from __future__ import annotations

import pytest
import torch

from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.quant.insert import Override, Placement, insert
from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import quantizers_of, select, weights_of
from ptmq_lightning.runtime.spec import BitWidth
from tests.networks import GROUPS, images, small_model, small_network


def owners(model: torch.nn.Module) -> list[str]:
    return [quantizer.owner for _, quantizer in quantizers_of(model)]


def test_every_layer_input_is_quantized_once_and_the_image_is_not() -> None:
    model = small_model()
    assert sorted(owners(model)) == sorted(
        [
            *(f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)),
            *["blocks.0.qkv", "blocks.0.proj", "fc"],
            *["blocks.0.matmul1"] * 2,
            *["blocks.0.matmul2"] * 2,
        ]
    )


def test_the_shortcut_sees_the_quantized_tensor() -> None:
    model, x = small_model(), torch.rand(2, 8, 8, 8)
    block = model.blocks[1]
    select(block, {name: BitWidth(8, 3) for name in model.layers})
    quantizer = next(q for _, q in quantizers_of(block) if q.owner == "layer1.0.conv1")
    with torch.no_grad():
        assert torch.equal(block(x), block(quantizer(x)))


def test_attention_probabilities_keep_their_own_width() -> None:
    model = small_model(placement=Placement(softmax=6))
    widths = {path[-1]: q.widths for path, q in quantizers_of(model) if q.owner == "blocks.0.matmul2"}
    assert widths == {"a": (6,), "b": (3, 4, 5, 6, 8)}  # a: the probabilities, b: the values


def test_overrides_pin_by_pattern_and_the_first_match_wins() -> None:
    overrides = (Override("layer1.0.*", w=8), Override("layer1.*", w=6, a=6))
    model = small_model(placement=Placement(overrides=[*overrides]))
    assignment = model.resolve(3)
    assert assignment["layer1.0.conv1"] == (8, 3) and assignment["layer1.1.conv2"] == (6, 6)
    assert assignment["blocks.0.qkv"] == (3, 3)


def test_an_override_of_one_side_leaves_the_other_to_the_edge_rule() -> None:
    last = list(small_model().layers)[-1]
    layers = small_model(placement=Placement(overrides=[Override(last, w=4), Override("conv1", a=6)])).layers
    assert (layers[last].pin_w, layers[last].pin_a) == (4, 8)
    assert (layers["conv1"].pin_w, layers["conv1"].pin_a) == (8, 6)


def test_an_override_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        small_model(placement=Placement(overrides=[Override("layer9.*", w=8)]))
    assert str(error.value) == (
        "found the layer pattern 'layer9.*' in placement.overrides, which matches none of 10 layers; expected a "
        "pattern like 'conv1'."
    )


def test_an_unknown_edge_rule_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Placement(edge="first")
    assert str(error.value) == "found placement.edge='first'; expected one of qdrop, brecq, 8bit, none."


def test_an_unknown_runtime_to_deploy_to_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Placement(deploy="litert")
    assert str(error.value) == "found placement.deploy='litert'; expected one of none, onnx."


def test_nearest_rounding_at_eight_bits_stays_close_to_the_float_network() -> None:
    gm = graph.trace(small_network(), (3, 8, 8))
    fold.fold(gm)
    model = insert(blocks.cut(gm, images(2)), GROUPS.pairs, Placement(), StepSize())
    for _, weight in weights_of(model):
        error = (weight.at(8) - weight.at(None)).abs()
        step = weight.steps[weight.widths.index(8)].reshape(-1, *[1] * (error.dim() - 1))
        # half a step, unless the search preferred to clip the largest weights
        assert float((error > 0.51 * step).float().mean()) < 0.02
