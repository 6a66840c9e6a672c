"""Levels in a table are the best ones of the 8-bit grid, and train, ship and count like the uniform ones."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ptmq_lightning.artifact import artifact
from ptmq_lightning.models import blocks, fold, graph
from ptmq_lightning.quant.activation_steps import activation_steps
from ptmq_lightning.quant.insert import Placement, insert
from ptmq_lightning.quant.layers import MaskBank, TrainableActivation
from ptmq_lightning.quant.levels import Distribution, _cells, activation_tables, best_tables
from ptmq_lightning.quant.steps import StepSize, calibrate
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, at_bits, quantizers_of
from tests.networks import GROUPS, images
from tests.quant import plain

WIDTHS = (2, 3, 4, 6, 8)


@pytest.fixture(scope="module")
def sample() -> Tensor:
    """What leaves a GELU: a long positive side and a short negative one."""
    return nn.functional.gelu(2 * torch.randn(8000, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def quantizer(sample: Tensor) -> ActivationQuantizer:
    found = activation_tables(sample, torch.ones_like(sample), float(sample.min()), float(sample.max()), WIDTHS)
    made = ActivationQuantizer(WIDTHS, "fc2", table=True)
    made.steps, made.zero_points = torch.tensor([s for s, _, _ in found]), torch.tensor([z for _, z, _ in found])
    made.tables = torch.stack([table for _, _, table in found])
    return made


def error(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().pow(2.4).mean())


@pytest.mark.parametrize("bits", [1, 2])
def test_no_other_levels_of_the_grid_have_a_smaller_error(bits: int) -> None:
    counts = torch.tensor([5, 0, 9, 1, 4, 0, 0, 2])
    codes = torch.arange(len(counts))
    (table,) = best_tables(counts, [bits], 2.4)
    found = float((counts * (table - codes).abs().pow(2.4)).sum())
    each = [
        float((counts * (codes.unsqueeze(1) - torch.tensor(levels)).abs().amin(1).double().pow(2.4)).sum())
        for levels in itertools.combinations(range(len(counts)), 2**bits)
    ]
    assert found == pytest.approx(min(each), rel=1e-9)


@pytest.mark.parametrize(
    ("of", "scale"), [(nn.functional.gelu, 3.0), (nn.functional.silu, 0.3), (lambda x: x.pow(3), 1.0)]
)
def test_ends_that_cannot_gain_are_left_out_without_changing_the_tables(of: Any, scale: float) -> None:
    x = of(scale * torch.randn(3000, generator=torch.Generator().manual_seed(3)))
    weight = torch.rand(3000, generator=torch.Generator().manual_seed(4))
    ends = float(x.min()), float(x.max())
    for found, expected in zip(
        activation_tables(x, weight, *ends, WIDTHS), plain.activation_tables(x, weight, *ends, WIDTHS), strict=True
    ):
        assert found[:2] == expected[:2] and torch.equal(found[2], expected[2])


def test_the_best_level_of_every_cell_is_found_by_bisection() -> None:
    counts = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e-9
    codes = torch.arange(40, dtype=torch.float64)
    cost, level = _cells(counts, codes, 2.4)
    each = (codes.unsqueeze(1) - codes).abs().pow(2.4) * counts
    for i, j in itertools.combinations(range(41), 2):
        every = each[:, i:j].sum(dim=1)
        assert float(cost[i, j]) == pytest.approx(float(every.min()), abs=1e-9)  # differences of running sums
        assert float(every[int(level[i, j])]) == pytest.approx(float(every.min()), abs=1e-9)


def test_a_width_has_no_more_levels_than_codes(quantizer: ActivationQuantizer) -> None:
    assert quantizer.tables is not None
    for bits, table in zip(WIDTHS, quantizer.tables, strict=True):
        assert len(table.unique()) <= 2**bits
    assert torch.equal(quantizer.tables[-1], torch.arange(256, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_behind_a_gelu_a_table_has_clearly_less_error_than_equal_steps(
    bits: int, sample: Tensor, quantizer: ActivationQuantizer
) -> None:
    ((step, zero),) = activation_steps(sample, float(sample.min()), float(sample.max()), [bits])
    uniform = grid.quantize_activation(sample, torch.tensor(step), torch.tensor(zero), bits)
    quantizer.select(bits)
    assert error(quantizer(sample), sample) < 0.95 * error(uniform, sample)


def test_a_tensor_of_zeros_has_a_table_too() -> None:
    step, zero, table = activation_tables(torch.zeros(10), torch.ones(10), 0.0, 0.0, (4,))[0]
    x = torch.zeros(3)
    assert torch.equal(grid.LookUp.of(torch.tensor(step), torch.tensor(zero), table)(x), x)


def test_the_table_of_all_codes_is_the_uniform_8_bit_quantizer(sample: Tensor) -> None:
    step, zero = torch.tensor(0.05), torch.tensor(4.0)
    table = torch.arange(256, dtype=torch.uint8)
    expected = grid.quantize_activation(sample, step, zero, 8)
    assert torch.equal(grid.LookUp.of(step, zero, table)(sample), expected)


def test_a_table_is_trained_as_it_is_committed(sample: Tensor, quantizer: ActivationQuantizer) -> None:
    trainable = TrainableActivation(quantizer, MaskBank(0)).eval()
    for bits in WIDTHS:
        trainable.select(bits)
        assert torch.equal(trainable(sample), trainable.committed()(sample))


def test_the_step_of_a_table_has_the_gradient_of_a_straight_through_estimator(
    sample: Tensor, quantizer: ActivationQuantizer
) -> None:
    trainable = TrainableActivation(quantizer, masks=None)
    trainable.select(3)
    x, twin = (sample[:200].clone().requires_grad_() for _ in range(2))
    upstream = torch.randn(200)
    trainable(x).backward(upstream)

    row = WIDTHS.index(3)
    log_step = quantizer.steps[row].log().requires_grad_()
    zero, scaled = quantizer.zero_points[row], twin / log_step.exp()
    level = quantizer.tables[row][(scaled.round() + zero).clamp(0, 255).int()]
    inside = (scaled.round() + zero).clamp(0, 255) == scaled.round() + zero
    straight = torch.where(inside, scaled + (level - zero - scaled).detach(), level - zero)
    (straight * log_step.exp()).backward(upstream)
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(trainable.log_step["3"].grad, log_step.grad, rtol=1e-4, atol=1e-5)  # sums of 200 floats


def activated(gelu: str) -> MultiBitModel:
    """Stem, GELU, convolution, SiLU, convolution, ReLU, convolution, head."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, 6, 1), nn.SiLU(), nn.Conv2d(6, 6, 1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Conv2d(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).eval()
    gm = graph.trace(network, (3, 8, 8))
    fold.fold(gm)
    model = insert(blocks.cut(gm, images(2)), GROUPS.pairs, Placement(gelu=gelu), StepSize())
    calibrate(model, images())
    return model


def test_tables_stand_behind_a_gelu_and_its_kind_alone() -> None:
    tabled = {gelu: [q.tables is not None for _, q in quantizers_of(activated(gelu))] for gelu in ("uniform", "table")}
    assert tabled == {"uniform": [False] * 4, "table": [True, True, False, False]}


class Tokens(nn.Module):
    """Four tokens of an image, a GELU between two linear layers, the logits of the tokens' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.fc1, self.act = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 32), nn.GELU()
        self.fc2, self.head = nn.Linear(32, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.fc2(self.act(self.fc1(tokens))).mean(dim=1))


def test_the_grid_of_a_table_does_not_stretch_to_one_massive_token() -> None:
    torch.manual_seed(0)
    network, x = Tokens().eval(), images(512)
    massive = x.clone()
    massive[3, :, :4, :4] *= 50
    steps = []
    for shown in (x, massive):
        gm = graph.trace(network, (3, 8, 8))
        model = insert(blocks.cut(gm, x[:2]), GROUPS.pairs, Placement(gelu="table"), StepSize())
        calibrate(model, shown)
        (tabled,) = [quantizer for _, quantizer in quantizers_of(model) if quantizer.tables is not None]
        steps.append(float(tabled.steps[-1]))
    assert steps[1] < 3 * steps[0]  # if a value counted by itself: 15 times


def test_tables_are_saved_and_loaded_to_the_last_bit(tmp_path: Path) -> None:
    model, x = activated("table"), images()
    loaded = artifact.load(artifact.save(model, tmp_path / "model"))
    for which in (3, "w5a5", 8, None):
        with at_bits(model, which), at_bits(loaded, which), torch.no_grad():
            assert torch.equal(loaded(x), model(x)), which


def test_unknown_levels_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        Placement(gelu="log2")
    assert str(error.value) == "found placement.gelu='log2'; expected one of uniform, table."


def test_a_distribution_holds_every_value_to_a_thousandth_and_what_it_counts() -> None:
    x = torch.tensor([[3.0, -0.17, 0.0, 1e-3], [300.0, 0.5, 0.5, -2.0]])
    spread = Distribution()
    spread.count(x, None)
    values, weight = spread.seen()
    expected, counts = x.flatten().unique(return_counts=True)
    torch.testing.assert_close(values.sort().values, expected, rtol=1e-3, atol=1e-9)
    torch.testing.assert_close(weight[values.argsort()], counts / 8)


def test_a_value_is_told_as_the_middle_of_its_bin() -> None:
    distribution = Distribution()
    distribution.count(torch.tensor([[1.0, 1 + 2**-11, -1.0, 1 + 2**-10]]), None)  # bins of 2**-10 at 1
    values, counts = (told.tolist() for told in distribution.seen())
    middle = 1 + 2**-11
    expected = {middle: 0.5, middle + 2**-10: 0.25, -middle: 0.25}
    assert dict(zip(values, counts, strict=True)) == expected


def test_a_value_of_a_large_token_counts_less() -> None:
    spread = Distribution()
    spread.count(torch.tensor([[1.0, 1.0], [10.0, 10.0]]), 2.0)
    torch.testing.assert_close(spread.seen()[1], torch.tensor([100 / 101, 1 / 101]))
