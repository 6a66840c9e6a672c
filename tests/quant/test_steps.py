"""Step sizes minimize the error they are searched for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptmq_lightning.quant import steps as search
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.model import quantizers_of
from tests.networks import images, small_model
from tests.quant import plain

WIDTHS = (2, 3, 4, 6, 8)


def error(rows: Tensor, step: Tensor, bits: int) -> Tensor:
    s = step.unsqueeze(1)
    q = torch.round(rows / s).clamp(*grid.limits(bits)) * s
    return (q - rows).abs().pow(2.4).mean(1)


def on_the_latent_grid(weight: Tensor) -> Tensor:
    n, step = grid.latent(weight)
    return n.float() * grid.per_channel(step, n)


def rows_of(kind: str) -> Tensor:
    rows = torch.randn(48, 300, generator=torch.Generator().manual_seed(7))
    if kind == "outlier":
        rows[:, 5] = 100 * rows[:, 5].sign()
    elif kind == "constant":
        rows = torch.linspace(-2, 2, 48).unsqueeze(1).expand(-1, 300).contiguous()  # a channel of zeros is not among it
    elif kind == "zeros":
        rows[::2] = 0
    elif kind == "next to nothing":
        rows *= torch.logspace(-9, -4, 48).unsqueeze(1)  # the steps of some channels end at EPS
    elif kind == "few":
        rows = rows[:, :9]
    return rows.bfloat16() if kind == "bf16" else rows


KINDS = ["normal", "outlier", "constant", "zeros", "next to nothing", "few", "bf16"]


@pytest.mark.parametrize("name", ["free", "power_of_two"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_search_by_counts_finds_the_steps_of_the_plain_search_to_the_bit(kind: str, name: str) -> None:
    rows, widths, how = on_the_latent_grid(rows_of(kind)), tuple(range(2, 9)), StepSize(name)
    found, expected = weight_grids(rows, widths, how).step, plain.weight_grids(rows, widths, how).step
    for bits, ours, theirs in zip(widths, found, expected, strict=True):
        # where two candidates tie, the plain form's float32 decides: then their errors are equal to its rounding
        mine, best = (plain.weight_error(rows, step, bits, how.p).pow(1 / how.p) for step in (ours, theirs))
        assert ((ours == theirs) | ((mine - best).abs() <= 1e-6 * rows.abs().amax(1))).all()
        assert kind == "constant" or torch.equal(ours, theirs)


def test_channels_are_searched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = on_the_latent_grid(torch.randn(10, 40))
    whole = weight_grids(rows, WIDTHS, StepSize()).step
    monkeypatch.setattr(search, "ROWS", 3)
    assert torch.equal(weight_grids(rows, WIDTHS, StepSize()).step, whole)


def test_free_steps_beat_the_full_range() -> None:
    rows = on_the_latent_grid(torch.randn(16, 400))
    for bits, step in zip(WIDTHS, weight_grids(rows, WIDTHS, StepSize("free")).step, strict=True):
        widest = rows.abs().amax(1) / ((2**bits - 1) / 2)
        assert (error(rows, step, bits) <= error(rows, widest, bits) + 1e-9).all()


def test_nested_steps_are_powers_of_two_apart_but_for_the_free_ones() -> None:
    rows = torch.randn(16, 400)
    steps = dict(zip(WIDTHS, weight_grids(rows, WIDTHS, StepSize("nested", 4, [2])).step, strict=True))
    for bits in (3, 4, 6, 8):
        assert torch.equal(steps[bits], steps[4] * 2.0 ** (4 - bits))
    assert torch.equal(steps[2], weight_grids(rows, (2,), StepSize("free")).step[0])


def test_power_of_two_steps_are_between_nested_and_free_in_error() -> None:
    rows = torch.randn(32, 400)
    total = {
        style: error(rows, weight_grids(rows, (3,), StepSize(style, anchor=8)).step[0], 3).sum()
        for style in ("free", "power_of_two", "nested")
    }
    assert total["free"] <= total["power_of_two"] <= total["nested"]


def test_power_of_two_steps_are_shifts_of_the_widest_code() -> None:
    few = torch.randn(256, 9, generator=torch.Generator().manual_seed(0))  # depthwise: the search would go further
    widths = tuple(range(2, 9))
    steps = weight_grids(few, widths, StepSize("power_of_two")).step
    for bits, step in zip(widths, steps, strict=True):
        assert set(torch.log2(step / steps[-1]).tolist()) <= set(range(8 - bits + 1))


def test_a_zero_channel_gets_a_positive_step() -> None:
    assert (weight_grids(torch.zeros(3, 4), WIDTHS, StepSize("free")).step > 0).all()


def test_calibration_reaches_every_quantizer_and_repeats() -> None:
    first, second = small_model(), small_model(calibrated=False)
    search.calibrate(second, images())
    steps = [(q.steps, q.zero_points) for _, q in quantizers_of(first)]
    assert steps and all(q.calibrated for _, q in quantizers_of(first))
    for (step, zero), (_, other) in zip(steps, quantizers_of(second), strict=True):
        assert torch.equal(step, other.steps) and torch.equal(zero, other.zero_points)


def test_calibration_tells_how_far_it_is() -> None:
    told: list[tuple[int, int, str]] = []
    model = small_model(calibrated=False)
    search.calibrate(model, images(10), batch=4, progress=lambda *where: told.append(where))
    count = len(list(quantizers_of(model)))
    assert told[:3] == [(4, 10, "image"), (8, 10, "image"), (10, 10, "image")]
    assert told[3:] == [(number, count, "tensor") for number in range(1, count + 1)]


def test_an_unknown_way_to_tie_step_sizes_is_refused() -> None:
    with pytest.raises(ConfigError) as found:
        StepSize("tied")
    assert all(name in str(found.value) for name in ("tied", "free", "nested", "power_of_two"))
