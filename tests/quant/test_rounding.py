"""Soft rounding, its start, its regularizer and its schedule agree with golden values."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ptmq_lightning.quant import kernels, rounding
from ptmq_lightning.quant.planes import PerGroup, SoftWeight
from ptmq_lightning.quant.rounding import BetaSchedule
from ptmq_lightning.quant.roundings import ROUNDINGS, RoundingKeys
from ptmq_lightning.quant.steps import StepSize, weight_grids
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.weights import MultiBitWeight
from tests.golden_values import golden


def test_the_rectified_sigmoid_is_the_golden_one() -> None:
    values = golden("soft_rounding")
    h = rounding.rectified_sigmoid(torch.tensor(values["V"], dtype=torch.float64))
    torch.testing.assert_close(h, torch.tensor(values["h"], dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_start_is_the_golden_one_and_gives_the_fraction_back() -> None:
    values = golden("soft_rounding")
    phi = torch.tensor(values["phi"], dtype=torch.float64)
    v = rounding.start(phi)
    torch.testing.assert_close(v, torch.tensor(values["V0"], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(rounding.rectified_sigmoid(v), phi, atol=1e-6, rtol=0)


def test_a_fraction_of_zero_or_one_starts_where_the_gradient_still_flows() -> None:
    h = rounding.rectified_sigmoid(rounding.start(torch.tensor([0.0, 1.0])))
    assert 0 < h[0] < 1e-3 and 1 - 1e-3 < h[1] < 1


def penalty(v: torch.Tensor, beta: float) -> float:
    return float(kernels.penalty(*kernels.rectify(v), v.new_tensor(beta))[0])


def test_the_regularizer_is_the_golden_one() -> None:
    values = golden("regularizer")
    v = torch.tensor(values["V"], dtype=torch.float64)
    assert penalty(v, values["beta"]) == pytest.approx(values["value"], abs=1e-9)


def test_the_regularizers_gradient_is_autograds() -> None:
    v = torch.linspace(-4, 4, 101, dtype=torch.float64, requires_grad=True)
    h = rounding.rectified_sigmoid(v)
    (1 - (2 * h - 1).abs().pow(7.5)).sum().backward()
    torch.testing.assert_close(kernels.penalty(*kernels.rectify(v.detach()), v.new_tensor(7.5))[1], v.grad)


def test_the_regularizer_is_zero_at_the_ends_and_one_in_the_middle() -> None:
    assert penalty(torch.tensor([-9.0, 9.0]), 2.0) == 0
    assert penalty(torch.tensor([0.0]), 20.0) == 1


def test_beta_is_the_golden_one() -> None:
    values = golden("beta")
    schedule = BetaSchedule(iters=1000)
    assert [schedule(round(1000 * t)) for t in values["t_over_T"]] == pytest.approx(values["beta"])
    assert not schedule.active(199) and schedule.active(200)


def weight_of(widths: tuple[int, ...], weight: torch.Tensor | None = None) -> MultiBitWeight:
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) if weight is None else weight
    return MultiBitWeight(*grid.latent(weight), widths, weight_grids(weight, widths, StepSize()).step)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (RoundingKeys("shared"), {2: 0, 3: 0, 4: 0, 8: 0}),
        (RoundingKeys("per_width"), {2: 0, 3: 1, 4: 2, 8: 3}),
        (RoundingKeys("per_group", planes=[[3], [4, 8]]), {3: 0, 4: 1, 8: 1}),
        (RoundingKeys("per_group", planes=[[5], [3], [8]]), {3: 0, 8: 1}),
    ],
    ids=["shared", "per_width", "an unlisted width has none", "a plane without a width is left out"],
)
def test_widths_find_their_plane(how: RoundingKeys, expected: dict[int, int]) -> None:
    kind = ROUNDINGS[how.name]
    assert issubclass(kind, SoftWeight) and kind.planes(weight_of((2, 3, 4, 8)), how) == expected


def test_a_wide_width_has_a_plane_where_nearest_rounding_is_far_off() -> None:
    widths = (2, 3, 4, 5, 6, 8)
    weight = weight_of(widths)
    exact = weight.at(None)
    errors = {b: float((weight.at(b) - exact).square().sum() / exact.square().sum()) for b in widths}
    how = partial(RoundingKeys, "per_group", planes=[[2], [4, 3]])
    assert PerGroup.planes(weight, how(tolerance=errors[6] * 0.99)) == {2: 0, 3: 1, 4: 1, 5: 2, 6: 3}
    assert PerGroup.planes(weight, how(tolerance=errors[6] * 1.01)) == {2: 0, 3: 1, 4: 1, 5: 2}
    assert PerGroup.planes(weight, how(tolerance=errors[5] * 1.01)) == {2: 0, 3: 1, 4: 1}  # the listed ones always
    assert PerGroup.planes(weight, how()) == {2: 0, 3: 1, 4: 1}
    assert PerGroup.planes(weight_of(widths, torch.zeros(4, 9)), how(tolerance=0.0)) == {2: 0, 3: 1, 4: 1}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        RoundingKeys("best")
    assert all(name in str(error.value) for name in ("best", *ROUNDINGS))


def test_groups_of_planes_must_be_listed() -> None:
    with pytest.raises(ConfigError) as error:
        RoundingKeys("per_group")
    assert "rounding.planes=" in str(error.value)
