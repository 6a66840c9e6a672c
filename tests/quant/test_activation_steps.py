"""The step and zero point of an activation minimize the error of a sample, seen through its histogram."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu

from ptmq_lightning.quant.activation_steps import MOST, TAIL, activation_steps, histogram
from ptmq_lightning.runtime import grid
from tests.quant import plain

SAMPLE = 1 << 13
WIDTHS = (2, 4, 5, 6, 8)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
def test_activation_steps_keep_the_zero_point_in_range_and_the_error_small(bits: int) -> None:
    for sample in (torch.rand(4000), -torch.rand(4000), torch.randn(4000) + 0.5):
        ((step, zero),) = activation_steps(sample, float(sample.min()), float(sample.max()), [bits])
        assert step > 0 and 0 <= zero <= 2**bits - 1 and zero == int(zero)
        quantized = grid.quantize_activation(sample, torch.tensor(step), torch.tensor(zero), bits)
        spread = float(sample.max() - sample.min())
        # uniform rounding over the full range has a standard error of range / levels / sqrt(12)
        assert float((quantized - sample).square().mean().sqrt()) < spread / (2**bits - 1)


def test_one_sided_tensors_take_the_zero_point_at_their_end() -> None:
    assert activation_steps(torch.rand(1000), 0.0, 1.0, [4])[0][1] == 0
    assert activation_steps(-torch.rand(1000), -1.0, 0.0, [4])[0][1] == 15


def test_a_tensor_of_zeros_has_a_step() -> None:
    assert activation_steps(torch.zeros(100), 0.0, 0.0, [2, 8]) == [(1.0, 0.0)] * 2


def sample_of(kind: str) -> Tensor:
    x = torch.randn(SAMPLE, generator=torch.Generator().manual_seed(5))
    if kind == "massive":
        x[::1000] *= 100
    elif kind == "constant":
        x = torch.full_like(x, 0.7)
    shapes = {"relu": x.relu(), "mostly zero": (x - 1).relu(), "gelu": gelu(2 * x), "skewed": (2 * x).exp()}
    return shapes.get(kind, x)


@pytest.mark.parametrize("kind", ["normal", "relu", "mostly zero", "gelu", "skewed", "massive", "constant", "far"])
def test_through_the_histogram_the_search_ends_within_three_percent_of_the_plain_one(kind: str) -> None:
    x = sample_of(kind)
    ends = (-300.0, 574.0) if kind == "far" else (float(x.min()), float(x.max()))  # far: the sample missed the ends
    for bits, found in zip(WIDTHS, activation_steps(x, *ends, WIDTHS), strict=True):
        mine = plain.activation_error(x, *found, bits)
        # 3 %: at most 1.2 % were seen, and that where the step hardly matters. Better is possible: the plain form looks
        # at every third value at 5 bits. Below a millionth of the value, float32's rounding is all that is left.
        assert mine <= 1.03 * plain.activation_error(x, *plain.activation_step(x, *ends, bits), bits) + 1e-14


def test_a_histogram_keeps_the_number_and_the_sum_of_the_values_and_the_farthest_ones() -> None:
    ordered = torch.randn(SAMPLE).exp().sort().values
    values, count = histogram(ordered, 8)
    assert len(values) <= MOST + 2 * TAIL and float(count.sum()) == SAMPLE
    assert float((values.double() * count).sum()) == pytest.approx(float(ordered.double().sum()), rel=1e-6)
    assert torch.equal(values[:TAIL], ordered[:TAIL]) and torch.equal(values[-TAIL:], ordered[-TAIL:])


def test_few_values_are_looked_at_one_by_one() -> None:
    ordered = torch.randn(100).sort().values
    values, count = histogram(ordered, 8)
    assert values is ordered and count.tolist() == [1] * 100
