"""Swaps only ever improve the divergence of the whole network, within the budgets, and stop when they are told to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from ptmq_lightning.allocate.greedy import greedy
from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.allocate.swaps import swap
from ptmq_lightning.runtime.spec import BitWidth
from tests.allocate.problems import FREE, TIED, random_problem


class Clock:
    """A second for each question."""

    def __init__(self) -> None:
        self.now = -1.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def interacting(problem: Problem) -> Callable[[Choice], float]:
    """Additive harm, and what two neighbors at few bits add to each other."""

    def divergence(choice: Choice) -> float:
        bits = [pair.w for pair in choice.values()]
        return problem.total(choice) + sum(4.0 ** -(one + other) for one, other in itertools.pairwise(bits))

    return divergence


def test_the_uniform_choice_is_taken_where_it_is_truly_better() -> None:
    problem = random_problem(0, share=1.0)
    eight, start = dict.fromkeys(problem.harm, max(TIED)), dict.fromkeys(problem.harm, min(TIED))
    assert swap(problem, start, lambda choice: float(choice != eight), 5, clock=Clock()) == eight


@pytest.mark.parametrize("seed", range(6))
def test_swaps_improve_and_keep_the_budgets(seed: int) -> None:
    problem = random_problem(seed, layers=8, pairs=FREE, budgets=1 + seed % 2, share=0.4)
    start, divergence = greedy(problem), interacting(problem)
    found = swap(problem, start, divergence, 300, clock=Clock())
    assert problem.fits(found) and divergence(found) <= divergence(start)


def test_a_better_swap_is_found() -> None:
    harm = {name: {pair: scale * 4.0**-pair.w for pair in TIED} for name, scale in (("a", 1.0), ("b", 100.0))}
    prices = {name: {pair: float(pair.w) for pair in TIED} for name in harm}
    problem = Problem(harm, (Budget("{:g}", prices, 10.0),))
    wrong = {"a": BitWidth(8, 8), "b": BitWidth(2, 2)}
    assert swap(problem, wrong, problem.total, 100, clock=Clock()) == {"a": BitWidth(4, 4), "b": BitWidth(6, 6)}


def test_without_time_nothing_is_tried() -> None:
    problem = random_problem(0)
    start = greedy(problem)

    def never(choice: Choice) -> float:
        raise AssertionError("was asked")

    assert swap(problem, start, never, 0) == start


def test_the_search_ends_when_the_time_is_over() -> None:
    problem, asked = random_problem(2, layers=20), []

    def counted(choice: Choice) -> float:
        asked.append(choice)
        return 1.0  # nothing is better than the start

    assert swap(problem, greedy(problem), counted, 10, clock=Clock()) == asked[0]
    assert 2 < len(asked) <= 10 + 2  # from two starts
