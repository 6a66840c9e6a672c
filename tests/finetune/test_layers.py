"""Hand values of the shared quantizer and norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.finetune.layers import FoldedWeight, LsqWeight, SwitchNorm, round_through, row_of
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layers import QuantConv2d
from ptmq_lightning.runtime.spec import BitWidth
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.finetune.networks import PAIRS


def lsq(values: list[float], step: float, bits: int = 2) -> LsqWeight:
    weight = LsqWeight(
        MultiBitWeight(torch.ones(1, len(values), dtype=torch.int16), torch.ones(1), (bits,), torch.full((1, 1), step))
    )
    weight.value.data = torch.tensor([values])
    return weight


def norm(*, shared: bool) -> SwitchNorm:
    torch.manual_seed(0)
    float_norm = nn.BatchNorm2d(2)
    nn.init.uniform_(float_norm.weight, 0.5, 1.5)
    nn.init.normal_(float_norm.running_mean)
    nn.init.uniform_(float_norm.running_var, 0.5, 1.5)
    return SwitchNorm(float_norm.eval(), "conv", PAIRS, shared=shared).eval()


def batch(seed: int = 0) -> Tensor:
    return torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_rounding_passes_the_gradient_unchanged() -> None:
    x = torch.tensor([0.4, 1.5, -2.6], requires_grad=True)
    y = round_through(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert (y.tolist(), x.grad.tolist()) == ([0.0, 2.0, -3.0], [1.0, 2.0, 3.0])


def test_a_weight_with_a_learned_step_is_clipped_and_rounded() -> None:
    # codes at 2 bits are -2..1: -1.9 -> -3.8 -> -2, 0.3 -> 0.6 -> 1, 0.9 -> 1.8 -> 2 -> 1
    torch.testing.assert_close(lsq([-1.9, 0.3, 0.9], 0.5).at(2), torch.tensor([[-1.0, 0.5, 0.5]]))


def test_the_step_learns_by_lsqs_rule() -> None:
    weight = lsq([-1.9, 0.3, 0.9], 0.5)
    weight.at(2).sum().backward()
    # dW^/ds is q at a clipped value and q - W/s inside: -2, 1 - 0.6, 1; the logarithm's gradient is s times that
    assert weight.log_step["2"].grad.item() == pytest.approx(0.5 * (-2 + 0.4 + 1), abs=1e-6)  # float32
    assert weight.value.grad.tolist() == [[0.0, 1.0, 0.0]]


def test_an_unrounded_weight_is_the_float_one() -> None:
    assert lsq([-1.9, 0.3], 0.5).at(None).tolist() == [[pytest.approx(-1.9), pytest.approx(0.3)]]


def test_every_width_of_a_norm_starts_as_the_float_norm() -> None:
    torch.manual_seed(0)
    float_norm = nn.BatchNorm2d(2).eval()
    for pair in PAIRS:
        switched = SwitchNorm(float_norm, "conv", PAIRS, shared=False).eval()
        switched.choose(pair)
        torch.testing.assert_close(switched(batch()), float_norm(batch()))


def test_training_a_width_leaves_the_other_widths_statistics_alone() -> None:
    switched = norm(shared=False).train()
    before = switched.mean.clone()
    switched.choose(PAIRS[1])
    switched(batch())
    changed = (switched.mean != before).any(dim=1)
    assert changed.tolist() == [False, True, False]


def test_a_switch_and_back_restores_a_norms_output_bitwise() -> None:
    switched = norm(shared=False)
    switched.mean[0] += 1
    switched.choose(PAIRS[0])
    first = switched(batch())
    switched.choose(PAIRS[2])
    other = switched(batch())
    switched.choose(PAIRS[0])
    assert torch.equal(switched(batch()), first)
    assert not torch.equal(other, first)


@pytest.mark.parametrize(("shared", "sets"), [(True, 1), (False, 3)])
def test_scale_and_shift_are_one_set_or_one_for_each_width(shared: bool, sets: int) -> None:
    switched = norm(shared=shared)
    assert (len(switched.scale), len(switched.shift), len(switched.mean)) == (sets, sets, 3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_folded_norm_is_the_norm_behind_the_layer(shared: bool) -> None:
    switched = norm(shared=shared)
    switched.mean += torch.arange(3.0).unsqueeze(1)
    integers = torch.randint(-100, 100, (2, 3, 1, 1), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    source = MultiBitWeight(integers, torch.full((2,), 0.01), (8,), torch.full((1, 2), 0.02))
    layer = QuantConv2d(source, None, (1, 1), (0, 0), (1, 1), 1)
    folded = QuantConv2d(source, None, (1, 1), (0, 0), (1, 1), 1)
    folded.weight = FoldedWeight(source, switched, folded)
    source.select(8)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    for pair in PAIRS:
        switched.choose(pair)
        folded.weight.choose(pair)
        torch.testing.assert_close(folded(x), switched(layer(x)), atol=1e-5, rtol=1e-5)  # one rounding more or less


def test_a_pair_that_was_not_trained_is_refused_with_those_that_were() -> None:
    with pytest.raises(ConfigError) as caught:
        row_of(BitWidth(4, 8), PAIRS, "layer1.0.conv1")
    assert str(caught.value) == (
        "the norm behind layer1.0.conv1 was not trained at w4a8; it was at w2a4, w4a4, w8a8. Choose one of these."
    )
