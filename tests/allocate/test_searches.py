"""Searches keep every budget; the exact one finds what trying everything finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ptmq_lightning.allocate.problem import Budget, Problem
from ptmq_lightning.allocate.searches import SEARCHES
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitWidth
from tests.allocate.problems import FREE, TIED, random_problem, tried

SHARES = (0.05, 0.3, 0.6, 0.95)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("pairs", "layers"), [(TIED, 6), (FREE, 5)], ids=["tied", "free"])
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_exact_search_finds_what_trying_everything_finds(
    pairs: tuple[BitWidth, ...], layers: int, budgets: int, seed: int
) -> None:
    problem = random_problem(seed, layers=layers, pairs=pairs, budgets=budgets, share=SHARES[seed % 4])
    best = tried(problem)
    if best is None:
        with pytest.raises(ConfigError, match="together"):
            SEARCHES["milp"](problem, 0)
        return
    found = SEARCHES["milp"](problem, 0)
    assert problem.fits(found)
    # a billionth of the harm is what the solver takes as equal
    assert problem.total(found) == pytest.approx(problem.total(best), rel=1e-8)


@pytest.mark.parametrize("name", sorted(SEARCHES))
@pytest.mark.parametrize("seed", range(10))
def test_no_budget_is_ever_exceeded(name: str, seed: int) -> None:
    problem = random_problem(seed, layers=12, pairs=FREE, budgets=1 + seed % 2, share=SHARES[seed % 4])
    try:
        found = SEARCHES[name](problem, seed)
    except ConfigError:
        assert name == "uniform" or problem.budgets[1:]  # one pair everywhere, or several budgets, may not fit
        return
    assert all(budget.spent(found) <= budget.limit for budget in problem.budgets)
    assert list(found) == list(problem.harm)


@pytest.mark.parametrize("seed", range(8))
def test_no_search_does_less_harm_than_the_exact_one(seed: int) -> None:
    problem = random_problem(seed, layers=15, share=SHARES[seed % 4])
    least = problem.total(SEARCHES["milp"](problem, 0))
    for name in ("greedy", "random", "uniform"):
        assert problem.total(SEARCHES[name](problem, seed)) >= least * (1 - 1e-8)


def test_more_to_spend_never_harms_more() -> None:
    totals = [
        problem.total(SEARCHES["milp"](problem, 0))
        for share in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
        for problem in [random_problem(3, layers=10, share=share)]
    ]
    assert totals == sorted(totals, reverse=True)


def test_a_limit_that_a_choice_meets_exactly_is_kept_by_it() -> None:
    problem = random_problem(0, layers=8, share=1.0)
    four = dict.fromkeys(problem.harm, BitWidth(4, 4))
    spent = problem.budgets[0].spent(four)
    prices = problem.budgets[0].prices
    uniform = SEARCHES["uniform"](Problem(problem.harm, (Budget("{:g}", prices, spent),)), 0)
    assert set(uniform.values()) == {BitWidth(4, 4)}


def test_random_assignments_follow_the_seed() -> None:
    problem = random_problem(0, layers=20)
    one, again, other = (SEARCHES["random"](problem, seed) for seed in (1, 1, 2))
    assert one == again != other


def test_a_budget_below_the_cheapest_pairs_says_what_is_possible() -> None:
    prices = {"fc": {pair: float(pair.w) for pair in TIED}}
    with pytest.raises(ConfigError, match=r"a size of 1 MB is below the narrowest possible, 2; ask for more"):
        Problem({"fc": dict.fromkeys(TIED, 0.0)}, (Budget("a size of {:g} MB", prices, 1.0),))


def test_a_pair_without_a_price_is_not_taken() -> None:
    harm = {"fc": {BitWidth(2, 2): 5.0, BitWidth(4, 4): 1.0, BitWidth(8, 8): 0.0}}
    budget = Budget("{:g}", {"fc": {BitWidth(2, 2): 2.0, BitWidth(8, 8): 8.0}}, 7.0)
    assert SEARCHES["milp"](Problem(harm, (budget,)), 0) == {"fc": BitWidth(2, 2)}


def test_a_layer_without_any_price_is_named() -> None:
    with pytest.raises(ConfigError, match="'fc'"):
        Problem({"fc": {BitWidth(4, 4): 0.0}}, (Budget("{:g}", {"fc": {BitWidth(8, 8): 1.0}}, 9.0),))


def test_the_widest_of_pairs_that_cost_and_harm_the_same_is_taken() -> None:
    harm = {"fc": {BitWidth(4, 4): 1.0, BitWidth(4, 8): 1.0, BitWidth(8, 8): 0.0}}
    prices = {"fc": {pair: float(pair.w) for pair in harm["fc"]}}
    for name in ("milp", "greedy", "uniform", "random"):
        assert SEARCHES[name](Problem(harm, (Budget("{:g}", prices, 4.0),)), 0) == {"fc": BitWidth(4, 8)}


def test_what_the_solver_prints_is_no_line_of_the_output() -> None:
    """HiGHS prints for some of these problems; in a process of its own, as that happens below Python."""
    program = (
        "from ptmq_lightning.allocate.searches import SEARCHES\n"
        "from tests.allocate.problems import random_problem\n"
        "for seed in range(8): SEARCHES['milp'](random_problem(seed, layers=54), 0)\n"
        "print('done')"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.stdout == "done\n", done.stderr


def test_without_scipy_the_exact_search_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptmq_lightning.runtime.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"scipy cannot be imported; expected the extra 'allocate'"):
        SEARCHES["milp"](random_problem(0, layers=3), 0)
