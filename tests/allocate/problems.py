"""Random knapsacks, and their solution by trying everything."""

from __future__ import annotations

import itertools
import random

from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.runtime.spec import BitWidth

TIED = tuple(BitWidth(w, w) for w in (2, 3, 4, 6, 8))
FREE = tuple(BitWidth(w, a) for w in (2, 4, 8) for a in (4, 8))


def random_problem(
    seed: int, *, layers: int = 5, pairs: tuple[BitWidth, ...] = TIED, budgets: int = 1, share: float = 0.5
) -> Problem:
    """Harm falls with the bits, by chance more or less; a share of what the widest pairs cost may be spent."""
    draw = random.Random(seed)
    names = [f"layer{index}" for index in range(layers)]
    counts = {name: draw.randint(1, 1000) for name in names}
    scales = {name: 10 ** draw.uniform(-2, 2) for name in names}
    harm = {
        name: {p: scales[name] * (4.0**-p.w + 4.0**-p.a) * 10 ** draw.uniform(-0.5, 0.5) for p in pairs}
        for name in names
    }
    costs = [
        {name: {p: float(counts[name] * p.w) for p in pairs} for name in names},
        {name: {p: float(draw.randint(1, 50) * p.w * p.a) for p in pairs} for name in names},
        {name: {p: float(draw.randint(1, 100)) for p in pairs} for name in names},  # of no order at all
    ][:budgets]
    made = []
    for prices in costs:
        least, most = (sum(end(of.values()) for of in prices.values()) for end in (min, max))
        made.append(Budget("a sum of {:g}", prices, least + share * (most - least)))
    return Problem(harm, tuple(made))


def tried(problem: Problem) -> Choice | None:
    """The best choice of all; None where none keeps the budgets."""
    names = list(problem.harm)
    every = (dict(zip(names, pairs, strict=True)) for pairs in itertools.product(*problem.harm.values()))
    return min((choice for choice in every if problem.fits(choice)), key=problem.total, default=None)
