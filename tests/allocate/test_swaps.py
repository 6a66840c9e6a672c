"""Swaps only ever improve the divergence of the whole network, within the budgets, and stop when they are told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ptmq_lightning.allocate.baselines import or_uniform
from ptmq_lightning.allocate.greedy import greedy
from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.allocate.swaps import SURE, below, swap
from ptmq_lightning.runtime.spec import BitWidth
from tests.allocate.problems import FREE, TIED, random_problem


class Clock:
    """A second for each question."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def interacting(problem: Problem) -> Callable[[Choice], Tensor]:
    """Additive harm, and what two neighbors at few bits add to each other; the same on each image."""

    def divergence(choice: Choice) -> Tensor:
        bits = [pair.w for pair in choice.values()]
        together = sum(4.0 ** -(one + other) for one, other in itertools.pairwise(bits))
        return torch.full((3,), problem.total(choice) + together, dtype=torch.float64)

    return divergence


def test_the_uniform_choice_is_taken_where_the_whole_network_is_no_worse_at_it() -> None:
    problem = random_problem(0, share=1.0)
    eight, mixed = dict.fromkeys(problem.harm, max(TIED)), greedy(random_problem(0, share=0.5))
    assert mixed != eight
    better, equal, worse = -1.0, 0.0, 1.0
    for harm, taken in ((better, eight), (equal, eight), (worse, mixed)):
        assert or_uniform(problem, mixed, lambda choice, h=harm: torch.tensor([h * (choice == eight)])) == taken


def test_no_uniform_choice_is_taken_that_exceeds_a_budget() -> None:
    problem = random_problem(0, share=0.5)
    found = or_uniform(problem, greedy(problem), lambda choice: torch.tensor([float(len({*choice.values()}))]))
    assert problem.fits(found) and len({*found.values()}) == 1 and found != dict.fromkeys(problem.harm, max(TIED))


@pytest.mark.parametrize("seed", range(6))
def test_swaps_improve_and_keep_the_budgets(seed: int) -> None:
    problem = random_problem(seed, layers=8, pairs=FREE, budgets=1 + seed % 2, share=0.4)
    start, divergence = greedy(problem), interacting(problem)
    found = swap(problem, start, divergence, 300, clock=Clock())
    assert problem.fits(found) and divergence(found).mean() <= divergence(start).mean()


def test_a_better_swap_is_found() -> None:
    harm = {name: {pair: scale * 4.0**-pair.w for pair in TIED} for name, scale in (("a", 1.0), ("b", 100.0))}
    prices = {name: {pair: float(pair.w) for pair in TIED} for name in harm}
    problem = Problem(harm, (Budget("{:g}", prices, 10.0),))
    wrong = {"a": BitWidth(8, 8), "b": BitWidth(2, 2)}
    right = {"a": BitWidth(4, 4), "b": BitWidth(6, 6)}
    assert swap(problem, wrong, lambda choice: torch.tensor([problem.total(choice)]), 100, clock=Clock()) == right


def test_a_swap_that_few_images_ask_for_is_not_kept() -> None:
    few, many = torch.tensor([1.0, *[0.0] * 15]), torch.tensor([1.0, 0.8] * 8)
    before = torch.full((16,), 2.0)
    assert below(before - many, before, SURE)
    assert not below(before - few, before, SURE)  # the mean falls by one standard error
    problem, asked = random_problem(2, layers=6), []

    def divergence(choice: Choice) -> Tensor:
        asked.append(choice)
        return before if len(asked) == 1 else before - few

    assert swap(problem, start := greedy(problem), divergence, 30, clock=Clock()) == start and len(asked) > 3
    asked.clear()
    assert swap(problem, start, divergence, 30, sure=0, clock=Clock()) != start


def test_without_time_nothing_is_tried() -> None:
    problem = random_problem(0)
    start = greedy(problem)

    def never(choice: Choice) -> Tensor:
        raise AssertionError("was asked")

    assert swap(problem, start, never, 0) == start


def test_the_search_ends_when_the_time_is_over() -> None:
    problem, asked = random_problem(2, layers=20), []

    def counted(choice: Choice) -> Tensor:
        asked.append(choice)
        return torch.ones(4)  # nothing is better than the start

    assert swap(problem, greedy(problem), counted, 10, clock=Clock()) == asked[0]
    assert 2 < len(asked) <= 10 + 1  # and the start
