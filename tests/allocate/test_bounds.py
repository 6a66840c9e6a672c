"""The bound throws options away, and never one that a best choice holds."""

from __future__ import annotations

import pytest

from ptmq_lightning.allocate.bounds import promising
from ptmq_lightning.allocate.greedy import greedy
from ptmq_lightning.allocate.problem import Option
from tests.allocate.problems import TIED, random_problem, tried


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budgets", [1, 2])
def test_every_option_of_the_best_choice_is_left(budgets: int, seed: int) -> None:
    problem = random_problem(seed, layers=6, budgets=budgets, share=0.1 + seed / 12)
    best = tried(problem)
    options = {
        name: [
            Option(pair, harm, tuple(b.prices[name][pair] for b in problem.budgets), 0.0) for pair, harm in of.items()
        ]
        for name, of in problem.harm.items()
    }
    left, known = promising(problem, options, None)
    assert best is not None and (known is None or problem.fits(known))
    better = known is None or problem.total(best) < problem.total(known) * (1 - 1e-9)
    assert not better or all(best[name] in [option.pair for option in of] for name, of in left.items())


def test_most_options_of_a_large_problem_go() -> None:
    problem = random_problem(0, layers=60, pairs=TIED)
    options = {name: list(ladder) for name, ladder in problem.ladders.items()}
    left, known = promising(problem, options, start := greedy(problem))
    assert known is not None and problem.total(known) <= problem.total(start)
    assert sum(map(len, left.values())) < sum(map(len, options.values())) / 2
