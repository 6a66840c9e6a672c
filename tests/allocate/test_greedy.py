"""The greedy search: within the budget, fewer bits where they harm least, pinned layers untouched."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from ptmq_lightning.allocate.greedy import greedy as walk
from ptmq_lightning.allocate.problem import Problem
from ptmq_lightning.allocate.rules import complete, weight_bits
from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitAssignment, BitWidth


def greedy(model: Any, harm: Sensitivity, average: float) -> BitAssignment:
    pairs = next(iter(harm.values()))
    return complete(model, walk(Problem(harm, (weight_bits(model, tuple(pairs), average),))))


@pytest.fixture
def harm(model: Any) -> Sensitivity:
    """Harm falls fourfold with each bit, as squared rounding errors do."""
    return {
        name: {pair: scale * 4.0**-pair.w for pair in model.pairs} for name, scale in (("a", 100), ("b", 1), ("c", 10))
    }


def average(model: Any, assignment: BitAssignment) -> float:
    counts = {name: math.prod(model.layers[name].weight_shape) for name in "abc"}
    return sum(count * assignment[name].w for name, count in counts.items()) / sum(counts.values())


@pytest.mark.parametrize("budget", [2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.9])
def test_the_average_keeps_to_the_budget(model: Any, harm: Sensitivity, budget: float) -> None:
    assert average(model, greedy(model, harm, budget)) <= budget


@pytest.mark.parametrize("seed", range(20))
def test_no_layer_could_go_up_within_the_budget(model: Any, seed: int) -> None:
    """Where a large layer goes down last, the walk lands far below the budget, and small ones have to go up again."""
    draw, budget = random.Random(seed), 2.5 + seed / 5
    scales = {name: 10 ** draw.uniform(-2, 2) for name in "abc"}
    harm = {name: {pair: scale * 4.0**-pair.w for pair in model.pairs} for name, scale in scales.items()}
    chosen = greedy(model, harm, budget)
    counts = {name: math.prod(model.layers[name].weight_shape) for name in "abc"}
    total = sum(counts.values())
    for name in "abc":
        wider = [pair.w for pair in model.pairs if pair.w > chosen[name].w][:1]
        assert all(average(model, chosen) + counts[name] * (w - chosen[name].w) / total > budget for w in wider), name


def harms(model: Any, **ends: tuple[float, float]) -> Sensitivity:
    """Of each layer the harm at 6 and at 8 bits; narrower pairs harm a thousandfold."""
    return {
        name: {pair: {8: at_eight, 6: at_six}.get(pair.w, 1000.0) for pair in model.pairs}
        for name, (at_six, at_eight) in ends.items()
    }


@pytest.mark.parametrize(
    ("a", "b", "first"),
    [
        ((10.0, 9.9), (2.5, 0.0), "a"),  # what counts is what is added, not what was there before
        ((1.0, 0.0), (1.2, 0.0), "b"),  # and per bit saved: b has three times the weights
        ((1.0, 0.0), (4.0, 0.0), "a"),
    ],
)
def test_the_layer_goes_down_first_that_loses_least_per_bit(
    model: Any, a: tuple[float, float], b: tuple[float, float], first: str
) -> None:
    counts = {"a": 100, "b": 300}
    chosen = greedy(model, harms(model, a=a, b=b, c=(1e6, 0.0)), 8 - 2 * counts[first] / 1000)
    assert {name: chosen[name].w for name in "abc"} == {"a": 8, "b": 8, "c": 8} | {first: 6}


def table(model: Any, **falls: dict[int, float]) -> Sensitivity:
    """Harm by weight bits; a width that is not named harms a million."""
    return {name: {pair: harm.get(pair.w, 1e6) for pair in model.pairs} for name, harm in falls.items()}


def test_a_large_layer_goes_down_although_a_small_one_would_do(model: Any) -> None:
    """What counts is the harm per bit saved, not the harm: b saves three times what a does."""
    harm = table(model, a={8: 0.0, 6: 1.0}, b={8: 0.0, 6: 1.2}, c={8: 0.0})
    chosen = greedy(model, harm, 8 - 2 * 100 / 1000)
    assert [chosen[name].w for name in "abc"] == [8, 6, 8]


def test_a_layer_goes_all_the_way_down_before_one_that_is_hurt_goes_at_all(model: Any) -> None:
    harmless = {8: 0.0, 6: 1e-6, 4: 2e-6, 3: 3e-6, 2: 4e-6}
    chosen = greedy(model, table(model, a=harmless, b={8: 0.0, 6: 1.0}, c={8: 0.0}), 8 - 1200 / 1000)
    assert [chosen[name].w for name in "abc"] == [2, 6, 8]


def test_a_step_over_two_bits_saves_twice_what_one_over_one_does(model: Any) -> None:
    """b from 6 to 4 adds 5 for 600 bits, a from 4 to 3 adds 1 for 100; what came before added next to nothing."""
    harm = table(model, a={8: 0.0, 6: 1e-6, 4: 2e-6, 3: 1.0}, b={8: 0.0, 6: 1e-6, 4: 5.0}, c={8: 0.0})
    chosen = greedy(model, harm, 8 - 1100 / 1000)
    assert [chosen[name].w for name in "abc"] == [8, 4, 8]


def test_a_generous_budget_keeps_every_layer_at_its_widest(model: Any, harm: Sensitivity) -> None:
    assert {pair for _, pair in greedy(model, harm, 8.0).items()} == {BitWidth(8, 8)}


def test_the_tightest_budget_takes_every_layer_to_its_narrowest(model: Any, harm: Sensitivity) -> None:
    chosen = greedy(model, harm, 2.0)
    assert [chosen[name].w for name in "abc"] == [2, 2, 2]


def test_the_layer_that_is_hurt_most_keeps_most_bits(model: Any, harm: Sensitivity) -> None:
    chosen = greedy(model, harm, 4.0)
    assert chosen["a"].w > chosen["c"].w  # a hundred weights of ten times the harm


def test_a_pinned_layer_stays_at_the_widest_pair(model: Any, harm: Sensitivity) -> None:
    assert greedy(model, harm, 2.0)["stem"] == BitWidth(8, 8)


def test_a_matmul_takes_its_blocks_narrowest_activations(model: Any, harm: Sensitivity) -> None:
    chosen = greedy(model, harm, 4.0)
    assert chosen["scores"].a == min(chosen["a"].a, chosen["b"].a)


def test_activations_follow_the_pair_of_the_weight_width(model: Any) -> None:
    pairs = (BitWidth(4, 6), BitWidth(4, 8), BitWidth(8, 8))
    harm = {name: {pair: 1.0 / pair.w for pair in pairs} for name in "abc"}
    assert greedy(model, harm, 4.0)["a"] == BitWidth(4, 8)  # the wider activations of the two


def test_the_layers_keep_the_models_order(model: Any, harm: Sensitivity) -> None:
    assert [name for name, _ in greedy(model, harm, 4.0).items()] == list(model.layers)


def test_a_budget_below_the_narrowest_width_is_an_error(model: Any, harm: Sensitivity) -> None:
    with pytest.raises(ConfigError) as error:
        greedy(model, harm, 1.5)
    assert str(error.value) == "an average of 1.5 weight bits is below the narrowest possible, 2; ask for more"
