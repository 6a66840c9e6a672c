"""The exact search: the knapsack as a mixed-integer linear programme, solved by HiGHS.

Source: the multiple-choice knapsack with several constraints; `scipy.optimize.milp`. What we do otherwise: HiGHS keeps
constraints up to a tolerance, so its answer is added up anew, and one that exceeds a budget is excluded by a constraint
of its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ptmq_lightning.allocate.bounds import promising
from ptmq_lightning.allocate.greedy import greedy
from ptmq_lightning.allocate.problem import SEARCHES, Choice, Option, Problem, impossible
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.extras import require

SECONDS = 30.0  # in which the best so far is taken
SCALE = 1e3  # of the objective: what HiGHS takes as equal, 1e-6, is a billionth of it
MOST_EXCLUDED = 20


@SEARCHES.register("milp")
def milp(problem: Problem, seed: int = 0) -> Choice:
    """The choice of least harm; where the programme is not solved in SECONDS, the best that was found.

    Raises:
        ConfigError: no choice keeps all budgets, or scipy is not installed.
    """
    require("allocate", "scipy")
    start = _walked(problem)
    undominated = {name: _undominated(problem, name) for name in problem.harm}
    left, start = promising(problem, undominated, start)
    most = problem.total(start) if start else float("inf")
    options = [(name, option) for name, of in left.items() for option in of]
    if len({name for name, _ in options}) < len(problem.harm):  # nothing can be better
        options = []
    excluded: list[Choice] = []
    while options and len(excluded) < MOST_EXCLUDED:
        found = _solve(problem, options, excluded, most)
        if found is None:
            break
        if problem.fits(found):
            return found if start is None or problem.total(found) <= most else start
        excluded.append(found)
    if start is None:
        raise impossible(problem)
    return start


def _walked(problem: Problem) -> Choice | None:
    """The greedy choice; None where the walk finds none."""
    try:
        return greedy(problem)
    except ConfigError:
        return None


def _undominated(problem: Problem, name: str) -> list[Option]:
    """The options of a layer but those beside which another harms no more and costs no more under any budget."""
    options = [
        Option(pair, harm, tuple(budget.prices[name][pair] for budget in problem.budgets), 0.0)
        for pair, harm in sorted(problem.harm[name].items(), reverse=True)
    ]
    figures = np.array([(o.harm, *o.prices) for o in options])  # (options, 1 + budgets)
    kept: list[int] = []
    for index in np.lexsort((*figures.T[::-1], figures.sum(axis=1))):  # none is dominated by a later one
        if not any((figures[other] <= figures[index]).all() for other in kept):
            kept.append(int(index))
    return [options[index] for index in kept]


def _solve(problem: Problem, options: list[tuple[str, Option]], excluded: list[Choice], most: float) -> Choice | None:
    """One solution of the programme whose harm is at most ``most``; None where none was found."""
    from scipy.optimize import Bounds, LinearConstraint
    from scipy.optimize import milp as solve
    from scipy.sparse import csr_array

    layers = {name: row for row, name in enumerate(problem.harm)}
    rows, columns = [layers[name] for name, _ in options], np.arange(len(options))
    one_each = csr_array((np.ones(len(options)), (rows, columns)), shape=(len(layers), len(options)))
    constraints: list[Any] = [LinearConstraint(one_each, 1, 1)]
    for number, budget in enumerate(problem.budgets):
        room = budget.limit - budget.fixed
        prices = np.array([[option.prices[number] for _, option in options]])
        constraints.append(LinearConstraint(prices / (room or 1.0), -np.inf, 1.0 if room else 0.0))
    for choice in excluded:
        taken = np.array([[float(choice[name] == option.pair) for name, option in options]])
        constraints.append(LinearConstraint(taken, -np.inf, len(layers) - 1))
    harm = np.array([option.harm for _, option in options])
    with _lines_of_c_to_stderr():
        result = solve(
            harm * (SCALE / (min(most, harm.sum()) or 1.0)),
            constraints=constraints,
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0, "time_limit": SECONDS},
        )
    if result.x is None:
        return None
    return {name: option.pair for (name, option), taken in zip(options, result.x, strict=True) if taken > 0.5}


@contextmanager
def _lines_of_c_to_stderr() -> Iterator[None]:
    """HiGHS tells of its repairs on the process's standard output, whatever it is told: there others read results."""
    try:
        kept = os.dup(1)
    except OSError:  # a process without one
        yield
        return
    sys.stdout.flush()
    os.dup2(2, 1)
    try:
        yield
    finally:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # C's own buffer
        os.dup2(kept, 1)
        os.close(kept)
