"""A learned weight that is rounded to nearest: what is trained is what ships, at every width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.quant.latent import FlexRound, LatentWeight
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import MultiBitWeight

WIDTHS = (2, 3, 4, 8)
LATENT = ["ste", "flexround"]
SHAPES = {"conv": (6, 5, 3, 3), "depthwise": (6, 1, 3, 3), "linear": (6, 20)}


def frozen(shape: tuple[int, ...] = SHAPES["conv"]) -> MultiBitWeight:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    n, step = grid.latent(weight)
    steps, zeros = weight_grids(weight, WIDTHS, StepSize(zero_points=[2, 3]))
    return MultiBitWeight(n, step, WIDTHS, steps, zero_points=zeros)


def moved(kind: str, shape: tuple[int, ...] = SHAPES["conv"], size: float = 0.3) -> LatentWeight:
    """A weight whose parameters and steps have moved."""
    weight = ROUNDINGS[kind](frozen(shape), RoundingKeys(kind), learn_step_sizes=True)
    torch.manual_seed(5)
    for parameter in weight.parameters():
        nn.init.normal_(parameter, std=size)
    return weight


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("kind", LATENT)
def test_the_trained_weight_is_the_committed_one_at_every_width(kind: str, shape: tuple[int, ...]) -> None:
    weight = moved(kind, shape)
    committed = weight.committed()
    for bits in WIDTHS:
        weight.select(bits)
        assert torch.equal(weight().detach(), committed.at(bits))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", LATENT)
def test_it_starts_at_nearest_rounding(kind: str, bits: int) -> None:
    source = frozen()
    weight = ROUNDINGS[kind](source, RoundingKeys(kind), learn_step_sizes=False)
    weight.select(bits)
    assert torch.equal(weight().detach(), source.at(bits))
    assert torch.equal(weight.committed().code(bits), source.code(bits))


@pytest.mark.parametrize("kind", LATENT)
def test_the_float_network_stays_what_it_was(kind: str) -> None:
    weight = moved(kind)
    assert torch.equal(weight.committed().at(None), frozen().at(None))
    assert torch.equal(weight(), frozen().at(None))  # no width selected


@pytest.mark.parametrize("kind", LATENT)
def test_all_widths_round_one_tensor_to_nearest(kind: str) -> None:
    committed = moved(kind).committed()
    stored = committed.rounding[0].double() * grid.per_channel(committed.latent_step.double(), committed.latent)
    for row, bits in enumerate(WIDTHS):
        step = grid.per_channel(committed.steps[row].double(), committed.latent)
        zero = committed.zero_point(bits)
        half = 0 if zero is None else grid.half_levels(zero, committed.latent).double()
        code = torch.floor(stored / step + half + 0.5).clamp(*grid.limits(bits))
        # float32 products beside a tie may round the other way
        assert float((committed.code(bits) != code).float().mean()) < 1e-2


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", LATENT)
def test_gradients_pass_straight_through_the_rounding(kind: str, bits: int) -> None:
    weight = moved(kind, size=0.1)
    weight.select(bits)
    upstream = torch.randn(weight.frozen.latent.shape, generator=torch.Generator().manual_seed(1))
    weight().backward(upstream)

    def through(x: Tensor, rounded: Tensor) -> Tensor:
        return x + (rounded - x).detach()

    low, high = grid.limits(bits)
    twins = [d.detach().clone().requires_grad_() for d in weight.d]
    gain = weight.log_gain[str(bits)].detach().clone().requires_grad_()
    n = weight.frozen.latent.float()
    position = n + twins[0] * weight._unit if kind == "ste" else n * torch.exp(-sum(twins[1:], twins[0]))
    step = grid.per_channel(weight.frozen.steps[WIDTHS.index(bits)] * gain.exp(), n)
    zero = weight.frozen.zero_point(bits)
    half = torch.zeros(()) if zero is None else grid.half_levels(zero, n)
    u = through(position, position.round()) * grid.per_channel(weight.frozen.latent_step, n) / step + half
    ((through(u, torch.floor(u + 0.5)).clamp(low, high) - half) * step).backward(upstream)
    for found, expected in zip(weight.d, twins, strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.log_gain[str(bits)].grad, gain.grad, rtol=1e-4, atol=1e-5)


def test_flexround_has_factors_per_output_and_for_convolutions_per_input_channel() -> None:
    def shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [tuple(d.shape) for d in FlexRound(frozen(shape), RoundingKeys("flexround"), learn_step_sizes=False).d]

    assert shapes(SHAPES["conv"]) == [(6, 5, 3, 3), (6, 1, 1, 1), (1, 5, 1, 1)]
    assert shapes(SHAPES["linear"]) == [(6, 20), (6, 1)]


@pytest.mark.parametrize("kind", LATENT)
def test_nothing_is_soft(kind: str) -> None:
    weight = moved(kind)
    assert weight.undecided({3, 4, 8}) == [] and weight.variables({3, 4}) == {}


def test_a_weight_that_grows_beyond_the_latent_grid_stops_at_its_end() -> None:
    weight = moved("flexround", size=20.0)
    committed = weight.committed()
    assert int(committed.rounding.abs().max()) == torch.iinfo(torch.int16).max
    weight.select(8)
    assert torch.equal(weight().detach(), committed.at(8))
