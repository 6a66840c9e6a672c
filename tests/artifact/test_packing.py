"""Bit strings hold what was put in, and nested codes are the latent ones at every width."""

from __future__ import annotations

import pytest
import torch

from ptmq_lightning.artifact.fields import bits_per_weight
from ptmq_lightning.artifact.nested import nested_of
from ptmq_lightning.artifact.packing import pack, unpack
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.artifact.tiny import LATENT, ROUNDING
from tests.golden_values import golden

WIDTHS = tuple(range(2, 9))


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_what_is_packed_is_unpacked(bits: int, count: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    unsigned = torch.randint(2 ** min(bits, 15), (count,), generator=generator)
    assert torch.equal(unpack(pack(unsigned, bits), bits, count, signed=False).long(), unsigned)
    if bits > 1:
        signed = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), generator=generator)
        packed = pack(signed, bits)
        assert packed.shape == (-(-count * bits // 8),)
        assert torch.equal(unpack(packed, bits, count, signed=True).long(), signed)


def test_a_bit_string_starts_with_the_most_significant_bit() -> None:
    assert pack(torch.tensor([1, -1, 2]), 3).tolist() == [0b00111101, 0b00000000]
    assert pack(torch.tensor([1, 0, 1]), 1).tolist() == [0b10100000]


def test_a_bit_string_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="9 values of 3 bits in"):
        unpack(torch.zeros(3, dtype=torch.uint8), 3, 9, signed=True)


def weight_of(kind: str, step_size: StepSize, plane_of: dict[int, int], scale: float = 1.0) -> MultiBitWeight:
    """A random weight; at scale below 1 many of its codes saturate at every width."""
    generator = torch.Generator().manual_seed(3)
    n, step = grid.latent(torch.randn(6, 400, generator=generator))
    steps, zeros = weight_grids(n * step[:, None], WIDTHS, step_size)
    weight = MultiBitWeight(n, step, WIDTHS, steps * scale, zero_points=zeros)
    if kind == "planes":
        rows = max(plane_of.values()) + 1
        weight.set_rounding(kind, torch.randint(2, (rows, *n.shape), generator=generator, dtype=torch.uint8), plane_of)
    elif kind == "offset":
        tau = torch.randint(32, (1, *n.shape), generator=generator, dtype=torch.uint8)
        weight.set_rounding(kind, tau, dict.fromkeys(WIDTHS, 0))
    elif kind == "latent":
        weight.set_rounding(kind, torch.randint(-1500, 1500, (1, *n.shape), generator=generator).to(torch.int16), {})
    return weight


NESTED, FREE_2_3 = StepSize("nested"), StepSize("nested", free_widths=[2, 3])
ZEROS_2_3 = StepSize("nested", free_widths=[2, 3], zero_points=[2, 3])
ONE, THREE = dict.fromkeys(WIDTHS, 0), {2: 0, 3: 1} | dict.fromkeys(range(4, 9), 2)
CASES = {
    "one plane": ("planes", NESTED, ONE, 9),
    "three planes": ("planes", NESTED, THREE, 11),
    "nearest": ("nearest", NESTED, {}, 9),
    "planes of 2 to 4 alone": ("planes", NESTED, {2: 0, 3: 1, 4: 2}, 9 + 2 + 3 + 4),
    "planes of 4 to 8 alone": ("planes", NESTED, dict.fromkeys(range(4, 9), 0), 8 + 1 + 2 + 3),
    "a plane of 2 alone, free steps": ("planes", StepSize(), {2: 0}, 35),
    "free 2 and 3": ("planes", FREE_2_3, THREE, 8 + 1 + 2 + 3),
    "zero points at 2 and 3": ("planes", ZEROS_2_3, THREE, 8 + 1 + 2 + 3),
    "a power of two per channel": ("planes", StepSize("power_of_two"), ONE, None),
    "free steps": ("planes", StepSize(), ONE, 35),
    "offset": ("offset", NESTED, {}, 35),
    "learned latents": ("latent", NESTED, {}, 9),
}


@pytest.mark.parametrize("scale", [1.0, 0.3], ids=["as searched", "saturated"])
@pytest.mark.parametrize("case", CASES)
def test_nested_codes_are_the_latent_ones(case: str, scale: float) -> None:
    kind, step_size, plane_of, bits = CASES[case]
    weight = weight_of(kind, step_size, plane_of, scale)
    nested = nested_of(weight)
    for width in WIDTHS:
        assert torch.equal(nested.code(width), weight.code(width)), width
        assert torch.equal(nested.at(width), weight.at(width)), width
    assert bits is None or bits_per_weight(nested.spec()) == bits


def test_the_saturated_case_does_clip_on_both_sides() -> None:
    weight = weight_of("planes", NESTED, ONE, 0.3)
    u = grid.position(weight.latent, weight.ratios[WIDTHS.index(8)])
    assert (u < -129).any() and (u > 128).any()


def test_the_floor_code_is_the_golden_one() -> None:
    stored = golden("nested")
    assert {"stored_code", "stored_R", "widths"} <= set(stored)
    codes, bits = torch.tensor(stored["stored_code"]), torch.tensor(stored["stored_R"], dtype=torch.uint8)
    weight = MultiBitWeight(
        codes.to(torch.int16),
        torch.ones(len(codes)),
        WIDTHS,
        torch.stack([torch.full((len(codes),), 2.0 ** (8 - b)) for b in WIDTHS]),
    )
    weight.set_rounding("planes", bits.unsqueeze(0), ONE)
    nested = nested_of(weight)
    for width in WIDTHS:
        assert nested.code(width).tolist() == stored["widths"][str(width)]


def tied_by_octaves(octaves: dict[int, int], planes: tuple[int, ...] = ()) -> MultiBitWeight:
    """A weight whose step at each width is 8 times that of its latent and so many octaves more."""
    step = torch.tensor([2.0**-10, 2.0**-9])
    steps = torch.stack([8 * step * 2.0**octave for octave in octaves.values()])
    weight = MultiBitWeight(torch.tensor(LATENT, dtype=torch.int16), step, tuple(octaves), steps)
    if planes:
        weight.set_rounding("planes", torch.tensor([ROUNDING], dtype=torch.uint8), dict.fromkeys(planes, 0))
    return weight


@pytest.mark.parametrize(("octaves", "tied"), [(4, (4, 8)), (5, ())])
def test_widths_are_tied_as_far_apart_as_their_bits_are_and_no_further(octaves: int, tied: tuple[int, ...]) -> None:
    assert nested_of(tied_by_octaves({4: octaves, 8: 0})).tied == tied


def test_of_several_ties_the_one_that_takes_the_fewest_bits_is_taken() -> None:
    """4, 5 and 6 bits with their plane save 8 bits per weight; 2 and 8 bits, tied as well, save 1."""
    weight = tied_by_octaves({2: 6, 4: 4, 5: 3, 6: 2, 8: 0}, planes=(4, 5, 6))
    assert nested_of(weight).tied == (4, 5, 6)
