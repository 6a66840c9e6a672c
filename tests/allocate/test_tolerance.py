"""The cheapest assignment within a drop: it keeps the drop, and what is much cheaper does not."""

from __future__ import annotations

from functools import partial

import pytest

from ptmq_lightning.allocate.problem import Choice
from ptmq_lightning.allocate.searches import SEARCHES
from ptmq_lightning.allocate.tolerance import cheapest
from ptmq_lightning.runtime.errors import ConfigError
from tests.allocate.problems import random_problem

search = partial(SEARCHES["greedy"], seed=0)


@pytest.mark.parametrize("most", [0.01, 0.1, 1.0])
def test_the_drop_is_kept_and_little_is_left_to_save(most: float) -> None:
    problem = random_problem(4, layers=10)
    budget = problem.budgets[0]
    found = cheapest(problem.harm, budget, search, problem.total, most)
    least, largest = budget.ends()
    assert problem.total(found) <= most
    # halved nine times: what is a hundredth of the range cheaper loses more, or does not exist
    limit = budget.spent(found) - (largest - least) / 100
    cheaper = random_problem(4, layers=10, share=(limit - least) / (largest - least)) if limit > least else None
    assert cheaper is None or cheaper.total(search(cheaper)) > most


def test_what_even_the_widest_pairs_cannot_keep_is_an_error() -> None:
    problem = random_problem(4)

    def drop(choice: Choice) -> float:
        return 2.5

    with pytest.raises(ConfigError) as error:
        cheapest(problem.harm, problem.budgets[0], search, drop, 1.0, "top-1")
    assert all(part in str(error.value) for part in ("2.50", "top-1", "at most 1"))
