"""The greedy walk down: the layer is narrowed that loses least for what it saves (PTMQ §5)."""

from __future__ import annotations

import heapq

from ptmq_lightning.allocate.problem import SEARCHES, Choice, Option, Problem, impossible

Rungs = dict[str, int]  # layer -> place on its ladder


@SEARCHES.register("greedy")
def greedy(problem: Problem, seed: int = 0) -> Choice:
    """All layers start at their widest pair; the one with the least harm per price saved goes down one rung until the
    budgets fit, then whatever still fits goes up again, the largest relief first.

    Raises:
        ConfigError: the walk finds nothing that keeps all budgets.
    """
    rungs = {name: len(ladder) - 1 for name, ladder in problem.ladders.items()}
    spent = Spent(problem, rungs)
    falls = [(_slope(problem, name, rung - 1), order, name) for order, (name, rung) in enumerate(rungs.items()) if rung]
    heapq.heapify(falls)  # in the order of the layers where two are level
    while not spent.fits():
        if not falls:
            raise impossible(problem)
        _, order, name = heapq.heappop(falls)
        spent.move(name, rungs[name] - 1)
        if rungs[name]:
            heapq.heappush(falls, (_slope(problem, name, rungs[name] - 1), order, name))
    climb(problem, spent)
    return spent.choice()


def climb(problem: Problem, spent: Spent) -> None:
    """Up again one rung at a time while something fits, the largest relief per price first."""
    while fitting := [name for name, rung in spent.rungs.items() if spent.could(name, rung + 1)]:
        name = max(fitting, key=lambda n: _slope(problem, n, spent.rungs[n]))
        spent.move(name, spent.rungs[name] + 1)


def _slope(problem: Problem, name: str, low: int) -> float:
    """Harm per price between a rung and the next."""
    below, above = problem.ladders[name][low], problem.ladders[name][low + 1]
    return (below.harm - above.harm) / (above.price - below.price)


class Spent:
    """A choice by rungs of the ladders, and what it spends of each budget."""

    def __init__(self, problem: Problem, rungs: Rungs) -> None:
        self.problem, self.rungs = problem, rungs
        options = [self.at(name, rung) for name, rung in rungs.items()]
        self.sums = [b.fixed + sum(o.prices[i] for o in options) for i, b in enumerate(problem.budgets)]

    def at(self, name: str, rung: int) -> Option:
        return self.problem.ladders[name][rung]

    def fits(self) -> bool:
        return self._within(self.sums)

    def could(self, name: str, rung: int) -> bool:
        """Whether a layer may take a rung that is there."""
        return rung < len(self.problem.ladders[name]) and self._within(self._sums(name, rung))

    def move(self, name: str, rung: int) -> None:
        self.sums = self._sums(name, rung)
        self.rungs[name] = rung

    def choice(self) -> Choice:
        return {name: self.at(name, rung).pair for name, rung in self.rungs.items()}

    def _sums(self, name: str, rung: int) -> list[float]:
        before, after = self.at(name, self.rungs[name]).prices, self.at(name, rung).prices
        return [total - old + new for total, old, new in zip(self.sums, before, after, strict=True)]

    def _within(self, sums: list[float]) -> bool:
        return all(total <= budget.limit for total, budget in zip(sums, self.problem.budgets, strict=True))
