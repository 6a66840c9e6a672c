"""What a search is compared with: the same pair everywhere, and pairs drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable

from torch import Tensor

from ptmq_lightning.allocate.greedy import Spent
from ptmq_lightning.allocate.problem import SEARCHES, Choice, Problem, impossible

BASELINES = ("uniform", "random")


@SEARCHES.register("uniform")
def uniform(problem: Problem, seed: int = 0) -> Choice:
    """The pair that harms least of those that all layers can take within the budgets; the widest where several do.

    Raises:
        ConfigError: no pair keeps all budgets.
    """
    if not (fitting := uniform_choices(problem)):
        raise impossible(problem)
    return min(fitting, key=problem.total)


def uniform_choices(problem: Problem) -> list[Choice]:
    """One pair in all layers, within the budgets; wide first, without pairs that are no wider in either part than
    another that fits."""
    first, *others = problem.harm.values()
    common = sorted((pair for pair in first if all(pair in harm for harm in others)), reverse=True)
    fitting = [pair for pair in common if problem.fits(dict.fromkeys(problem.harm, pair))]
    widest = [p for p in fitting if not any(o != p and o.w >= p.w and o.a >= p.a for o in fitting)]
    return [dict.fromkeys(problem.harm, pair) for pair in widest]


def or_uniform(problem: Problem, choice: Choice, divergence: Callable[[Choice], Tensor]) -> Choice:
    """The choice, or one pair in all layers where the whole network answers no worse at that within the budgets.

    The layers of a pair were learned together and make up for each other's errors, which no sum of single layers' harm
    knows of.

    Args:
        divergence: of the whole network at a choice, on each of N images (N,).
    """
    return min([*uniform_choices(problem), choice], key=lambda one: float(divergence(one).mean()))


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
