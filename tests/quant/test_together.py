"""What the layers of a unit compute together is what each would compute alone, and so are the gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.quant import rounding
from ptmq_lightning.quant.layers import TrainableActivation
from ptmq_lightning.quant.roundings import RoundingKeys
from ptmq_lightning.quant.together import together
from ptmq_lightning.runtime.layers import ActivationQuantizer
from tests.networks import trainable
from tests.quant.test_layers import KINDS, frozen

DRAWN = (2, 3, 8)


def weights(how: RoundingKeys) -> list[Any]:
    return [trainable(frozen(), how, learn_step_sizes=True) for _ in range(2)]


def quantizer() -> TrainableActivation:
    made = ActivationQuantizer((2, 3, 4, 8), "layer")
    made.steps, made.zero_points = torch.tensor([0.9, 0.4, 0.2, 0.01]), torch.tensor([1.0, 3.0, 7.0, 90.0])
    return TrainableActivation(made, None)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("how", [*KINDS, RoundingKeys("per_group", [[2], [3]])], ids=lambda how: f"{how.name}")
def test_weights_and_their_gradients_are_those_of_each_alone(how: RoundingKeys) -> None:
    alone, beside = nn.ModuleList(weights(how)), nn.ModuleList(weights(how))
    upstream = torch.randn(6, 5, 3, 3)
    for bits in DRAWN:
        for weight in alone:
            weight.select(bits)
            weight().backward(upstream)
    with together([(weight, DRAWN) for weight in beside], []):
        made = [(weight, weight.select(bits), weight()) for bits in DRAWN for weight in beside]
    for _, _, tensor in made:
        tensor.backward(upstream, retain_graph=True)
    expected = gradients(alone)
    for name, found in gradients(beside).items():
        # the last elements of a tensor go through another code path of the processor: an ulp
        torch.testing.assert_close(found, expected[name], msg=name)


@pytest.mark.parametrize("how", KINDS, ids=lambda how: how.name)
def test_the_penalty_counts_each_variable_once_and_an_offset_its_mean(how: RoundingKeys) -> None:
    layers = weights(how)
    with together([(weight, DRAWN) for weight in layers], []) as soft:
        found = sum(share * softened.penalty(torch.tensor(7.5)) for share, softened in soft)
    found.backward()
    variables = [layers[0].logits(bits) for bits in DRAWN]
    if how.name != "offset":
        variables = list({id(v): v for v in variables}.values())
    expected = torch.zeros(())
    for v in variables:
        expected = expected + (1 - (2 * rounding.rectified_sigmoid(v) - 1).abs().pow(7.5)).sum()
    if how.name == "offset":
        expected = expected / len(DRAWN)
    torch.testing.assert_close(found, 2 * expected)
    (wanted,) = torch.autograd.grad(expected, layers[0].v[0])
    for weight in layers:
        torch.testing.assert_close(weight.v[0].grad, wanted)


def test_activations_and_their_gradients_are_those_of_each_alone() -> None:
    alone, beside, x = quantizer(), quantizer(), torch.randn(50)
    for bits in DRAWN:
        alone.select(bits)
        alone(x).sum().backward()
    with together([], [(beside, DRAWN)]):
        for bits in DRAWN:
            beside.select(bits)
            beside(x).sum().backward(retain_graph=True)
    expected = gradients(alone)
    assert all(
        torch.equal(g, expected[n]) if g is not None else n == "log_step.4" for n, g in gradients(beside).items()
    )


def test_what_is_at_hand_is_gone_behind_the_context_also_after_an_error() -> None:
    (weight, _), activation = weights(RoundingKeys("shared")), quantizer()
    with pytest.raises(RuntimeError), together([(weight, DRAWN)], [(activation, DRAWN)]):
        assert set(weight.soft) == set(weight.now) == set(activation.now) == set(DRAWN)
        raise RuntimeError
    assert not weight.soft and not weight.now and not activation.now
