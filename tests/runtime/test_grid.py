"""The integer grid agrees with golden codes and keeps its promises at every width."""

from __future__ import annotations

import pytest
import torch

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.spec import MOST_ZERO, ZEROS
from tests.golden_values import golden

WIDTHS = range(2, 9)


@pytest.fixture
def latent() -> dict:
    return golden("latent_grid")


def test_the_latent_grid_is_the_golden_one(latent: dict) -> None:
    n, step = grid.latent(torch.tensor(latent["W"]))
    assert n.tolist() == latent["n"]
    # the golden steps are printed with ten digits
    torch.testing.assert_close(step, torch.tensor(latent["s_L"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_the_golden_ones_for_planes_offsets_and_nearest(latent: dict, bits: int) -> None:
    n = torch.tensor(latent["n"], dtype=torch.int16)
    width = latent["widths"][str(bits)]
    rho = torch.tensor(width["rho_float32"], dtype=torch.float64).float()
    tau = torch.tensor(latent["tau"], dtype=torch.float64)
    assert grid.code(n, rho, bits, torch.tensor(latent["R"])).tolist() == width["q_R"]
    assert grid.code_offset(n, rho, bits, tau).tolist() == width["q_tau"]
    assert grid.code(n, rho, bits).tolist() == width["q_nearest"]


def test_ratios_are_divided_in_double_precision(latent: dict) -> None:
    for width in latent["widths"].values():
        found = grid.ratio(torch.tensor(latent["s_L"], dtype=torch.float64), torch.tensor(width["s_b"]).double())
        torch.testing.assert_close(found, torch.tensor(width["rho_float32"]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", WIDTHS)
def test_nested_codes_are_the_stored_code_shifted(bits: int) -> None:
    nested = golden("nested")
    stored = torch.tensor(nested["stored_code"]) >> (8 - bits)
    low, high = grid.limits(bits)
    assert (stored + torch.tensor(nested["stored_R"])).clamp(low, high).tolist() == nested["widths"][str(bits)]


@pytest.mark.parametrize("case", golden("lsq_activation"), ids=lambda case: f"{case['bits']} bits")
def test_activations_are_the_golden_ones(case: dict) -> None:
    x, s, z = torch.tensor(case["x"]), torch.tensor(case["s"]), torch.tensor(float(case["zero_point"]))
    torch.testing.assert_close(grid.quantize_activation(x, s, z, case["bits"]), torch.tensor(case["y"]))


@pytest.mark.parametrize("bits", range(2, MOST_ZERO + 1))
def test_zero_points_move_the_levels_by_halves_and_whole_numbers_tell_them_exactly(bits: int) -> None:
    low, high = grid.limits(bits)
    codes = torch.arange(low, high + 1, dtype=torch.int8).expand(3, -1)
    zero, step = torch.tensor(ZEROS, dtype=torch.int8), torch.tensor([0.3, 0.7, 1.1])
    levels = codes - grid.half_levels(zero, codes)
    assert [row.tolist()[0] - low for row in levels] == [0.0, 0.5, 1.0]
    whole, unit = grid.multiples(codes, zero), grid.whole_step(step, zero)
    assert torch.equal(whole * unit[:, None], levels * step[:, None])
    assert whole.dtype == torch.int8 and max(int(whole.max()) + 1, -int(whole.min())) <= 2**bits <= 64
    # nearest: the level that is nearest, at the ends the last one
    n = torch.arange(-1000, 1001, dtype=torch.int16).expand(3, -1)
    rho = torch.tensor([0.01, 0.02, 0.03])
    found = grid.code(n, rho, bits, zero=zero) - grid.half_levels(zero, n)
    apart = (n * rho[:, None]).clamp(levels[:, :1], levels[:, -1:]) - found
    assert float(apart.abs().max()) <= 0.5 + 1e-5
    up = grid.code(n, rho, bits, torch.ones(3, 2001, dtype=torch.uint8), zero)
    down = grid.code(n, rho, bits, torch.zeros(3, 2001, dtype=torch.uint8), zero)
    assert set((up - down).flatten().tolist()) <= {0, 1} and (grid.code(n, rho, bits, zero=zero) - down).max() == 1


def test_a_channel_of_zeros_stays_zero_at_every_width() -> None:
    n, step = grid.latent(torch.zeros(2, 3))
    assert (step > 0).all() and not n.any()
    assert not grid.code(n, torch.ones(2), 3).any()


def test_the_latent_network_is_the_float_one_to_a_fine_step() -> None:
    weight = torch.randn(8, 40)
    n, step = grid.latent(weight)
    error = (n.float() * step[:, None] - weight).abs()
    assert (error <= step[:, None] * 0.5001).all()  # half a step, and the rounding of one float product


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_stay_in_range_for_any_rounding(bits: int) -> None:
    n, step = grid.latent(torch.randn(4, 50))
    rho = grid.ratio(step, step * 3)
    low, high = grid.limits(bits)
    codes = grid.code(n, rho, bits, torch.randint(0, 2, n.shape))
    assert codes.min() >= low and codes.max() <= high
