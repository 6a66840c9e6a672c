"""The mixer makes the golden inputs, and its streams follow the paper's cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ptmq_lightning.reconstruction.mixer import MIXERS, group_weights
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitGroups, BitWidth
from tests.golden_values import golden
from tests.networks import mixer

GROUPS = BitGroups.of([[3], [5], [8]])
DRAWN = [BitWidth(3, 3), BitWidth(5, 5), BitWidth(8, 8)]


@pytest.fixture
def values() -> dict[str, Tensor]:
    return {
        key: torch.tensor(value, dtype=torch.float64)
        for key, value in golden("mixer").items()
        if isinstance(value, list) and key != "lambda_low_mid_high"
    }


def inputs(case: str, values: dict[str, Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
    features = [values[name] for name in ("low", "mid", "high")]
    streams = dict(zip(DRAWN if case == "matched" else range(3), features, strict=True))
    mask = values["mask_one_takes_first"]
    return mixer(case).inputs(values["f"], streams, DRAWN, lambda _: mask, generator or torch.Generator())


@pytest.mark.parametrize("case", ["case2", "case3"])
def test_the_papers_mixtures_are_the_golden_ones(case: str, values: dict[str, Tensor]) -> None:
    for mixed in inputs(case, values):
        torch.testing.assert_close(mixed, values[case], atol=1e-9, rtol=0)


def test_case1_is_the_golden_one_where_it_draws_the_middle_group(values: dict[str, Tensor]) -> None:
    seeds = {}
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        drawn = int(torch.randint(3, (), generator=torch.Generator().manual_seed(seed)))
        seeds[drawn] = inputs("case1", values, generator)
    for mixed in seeds[1]:
        torch.testing.assert_close(mixed, values["case1_group_mid"], atol=1e-9, rtol=0)


def test_matched_gives_each_width_its_own_features(values: dict[str, Tensor]) -> None:
    golden_inputs = golden("mixer")["matched"]
    for mixed, name in zip(inputs("matched", values), ("low", "mid", "high"), strict=True):
        torch.testing.assert_close(mixed, torch.tensor(golden_inputs[name], dtype=torch.float64), atol=1e-9, rtol=0)


def test_none_has_no_float_features(values: dict[str, Tensor]) -> None:
    expected = 0.4 * values["low"] + 0.3 * values["mid"] + 0.3 * values["high"]
    torch.testing.assert_close(inputs("none", values)[0], expected)


@pytest.mark.parametrize("case", ["none", "case1", "case2", "case3", "matched"])
def test_every_stream_is_run_at_its_own_widths(case: str) -> None:
    groups, ran = BitGroups.of([[3, 4], [8]]), []

    def run(x: Tensor, width: BitWidth) -> Tensor:
        ran.append(width)
        return x + width.w

    made = mixer(case)
    streams = {key: torch.zeros(2, 3) for key in made.streams(groups)}
    behind = made.propagate(streams, groups, run, torch.Generator().manual_seed(0))
    assert set(behind) == set(made.streams(groups))
    if case == "matched":
        assert {key: float(value[0, 0]) for key, value in behind.items()} == {(3, 3): 3, (4, 4): 4, (8, 8): 8}
    else:
        assert [len(ran), float(behind[1][0, 0])] == [2, 8] and float(behind[0][0, 0]) in (3, 4)


def test_other_numbers_of_groups_keep_the_low_one_heavy() -> None:
    assert group_weights([0.4, 0.3, 0.3], 4) == pytest.approx((0.4, 0.2, 0.2, 0.2))
    assert group_weights([0.4, 0.3, 0.3], 1) == (1.0,)


def test_weights_must_sum_to_one() -> None:
    mixer("case3", weights=[0.1] * 10)  # 1 but for float64's own error
    with pytest.raises(ConfigError) as error:
        mixer("case3", weights=[0.5, 0.3, 0.3])
    assert "mixer.weights=[0.5, 0.3, 0.3]" in str(error.value) and "1.1" in str(error.value)


def test_an_unknown_case_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        mixer("case4")
    assert all(name in str(error.value) for name in ("case4", *MIXERS))
