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
from ptmq_lightning.runtime.weights import MultiBitWeight
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


HOW = [StepSize(), StepSize("power_of_two"), StepSize(zero_points=[2, 3, 4, 5, 6])]


@pytest.mark.parametrize("how", HOW, ids=["free", "power_of_two", "zero_points"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_search_by_counts_finds_the_grids_of_the_plain_search_to_the_bit(kind: str, how: StepSize) -> None:
    rows, widths = on_the_latent_grid(rows_of(kind)), tuple(range(2, 9))
    found, expected = (zip(*search(rows, widths, how), strict=True) for search in (weight_grids, plain.weight_grids))
    for bits, ours, theirs in zip(widths, found, expected, strict=True):
        # where two candidates tie, the plain form's float32 decides: then their errors are equal to its rounding
        mine, best = (plain.weight_error(rows, s, bits, how.p, z).pow(1 / how.p) for s, z in (ours, theirs))
        same = (ours[0] == theirs[0]) & (ours[1] == theirs[1])
        assert (same | ((mine - best).abs() <= 1e-6 * rows.abs().amax(1))).all()
        assert kind == "constant" or how.zero_points or same.all()


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


@pytest.mark.parametrize(("rows", "zero"), [
    (torch.tensor([[-3.0, -1.0, 1.0, 3.0] * 9]), -1),  # half a level: -1.5 to 1.5
    (torch.tensor([[-1.0, 0.0, 1.0, 2.0] * 9]), -2),  # a level
    (torch.tensor([[-2.0, -1.0, 0.0, 1.0] * 9]), 0),
    (torch.zeros(1, 9), 0),
])  # fmt: skip
def test_a_channel_takes_the_zero_point_that_fits_it(rows: Tensor, zero: int) -> None:
    steps, zeros = weight_grids(on_the_latent_grid(rows), (2, 8), StepSize(zero_points=[2]))
    assert zeros.tolist() == [[zero], [0]] and zeros.dtype == torch.int8
    latent, latent_step = grid.latent(rows)
    weight = MultiBitWeight(latent, latent_step, (2, 8), steps, zero_points=zeros)
    torch.testing.assert_close(weight.at(2), rows, atol=0.02, rtol=0)
    assert weight.moved == ((2,) if zero else ())


@pytest.mark.parametrize("bits", [1, 7])
def test_zero_points_of_wide_widths_are_refused(bits: int) -> None:
    with pytest.raises(ConfigError, match=f"found step_size.zero_points with {bits} bits; expected widths from 2 to 6"):
        StepSize(zero_points=[4, bits])


def test_tied_widths_have_no_zero_points() -> None:
    rows = on_the_latent_grid(torch.randn(16, 400))
    for name in ("nested", "power_of_two"):
        assert not weight_grids(rows, (2, 3), StepSize(name, zero_points=[2, 3])).zero.any()


def test_nested_steps_are_powers_of_two_apart_but_for_the_free_ones() -> None:
    rows = torch.randn(16, 400)
    steps = dict(zip(WIDTHS, weight_grids(rows, WIDTHS, StepSize("nested", 4, [2])).step, strict=True))
    for bits in (3, 4, 6, 8):
        assert torch.equal(steps[bits], steps[4] * 2.0 ** (4 - bits))
    assert torch.equal(steps[2], weight_grids(rows, (2,), StepSize("free")).step[0])
    own, tied = weight_grids(rows, (2, 3), StepSize("nested", 4, [2], zero_points=[2, 3])).zero
    assert own.any() and not tied.any()


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
