"""What a search is compared with: the same pair everywhere, and pairs drawn at random."""

from __future__ import annotations

import random

from ptmq_lightning.allocate.greedy import Spent
from ptmq_lightning.allocate.problem import SEARCHES, Choice, Problem, impossible


@SEARCHES.register("uniform")
def uniform(problem: Problem, seed: int = 0) -> Choice:
    """The pair that harms least of those that all layers can take within the budgets; the widest where several do.

    Raises:
        ConfigError: no pair keeps all budgets.
    """
    first, *others = problem.harm.values()
    common = [pair for pair in first if all(pair in harm for harm in others)]
    fitting = [
        choice for pair in sorted(common, reverse=True) if problem.fits(choice := dict.fromkeys(problem.harm, pair))
    ]
    if not fitting:
        raise impossible(problem)
    return min(fitting, key=problem.total)


@SEARCHES.register("random")
def random_choice(problem: Problem, seed: int = 0) -> Choice:
    """Layers at random are narrowed from random pairs until the budgets fit, then widened while something fits.

    Raises:
        ConfigError: the cheapest pairs do not keep all budgets.
    """
    draw = random.Random(seed)
    spent = Spent(problem, {name: draw.randrange(len(ladder)) for name, ladder in problem.ladders.items()})
    while not spent.fits():
        if not (high := [name for name, rung in spent.rungs.items() if rung]):
            raise impossible(problem)
        name = draw.choice(high)
        spent.move(name, spent.rungs[name] - 1)
    while fitting := [name for name, rung in spent.rungs.items() if spent.could(name, rung + 1)]:
        name = draw.choice(fitting)
        spent.move(name, spent.rungs[name] + 1)
    return spent.choice()
