"""Swaps of two layers, ranked by the divergence of the whole network: what additive harm leaves out, interactions.

One layer goes down a rung of its ladder and another goes up as far as the budgets then allow. The candidates are tried
in the order of the additive harm that they would cost. One is kept where the true divergence falls, and the search
goes on from there: whenever it is stopped, what it holds is the best so far.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from ptmq_lightning.allocate.greedy import Spent
from ptmq_lightning.allocate.problem import Choice, Problem

log = logging.getLogger(__name__)


def swap(
    problem: Problem,
    choice: Choice,
    divergence: Callable[[Choice], float],
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The best choice that was found in time, at worst the given one.

    Args:
        problem: with the budgets that every choice keeps.
        choice: where to start.
        divergence: of the whole network at a choice.
        seconds: after which no further candidate is tried; 0: none is.
    """
    started, tried, kept = clock(), 0, 0
    best, least = choice, divergence(choice) if seconds > 0 else 0.0
    seen = {_key(choice)}
    improved = seconds > 0
    while improved:
        improved = False
        for candidate in _neighbors(problem, best):
            if clock() - started >= seconds:
                break
            if _key(candidate) in seen:
                continue
            seen.add(_key(candidate))
            tried += 1
            if (found := divergence(candidate)) < least:
                best, least, improved = candidate, found, True
                kept += 1
                break
    if tried:
        log.info("%d swaps tried, %d kept, in %.1f s", tried, kept, clock() - started)
    return best


def _key(choice: Choice) -> tuple[object, ...]:
    return tuple(choice.items())


def _neighbors(problem: Problem, choice: Choice) -> Iterator[Choice]:
    """The choice after every swap that the budgets allow, the one of least additive harm first."""
    rungs = {name: _rung(problem, name, choice) for name in choice}
    found: list[tuple[float, str, str, int]] = []
    for down in (name for name, rung in rungs.items() if rung):
        spent = Spent(problem, dict(rungs))
        spent.move(down, rungs[down] - 1)
        lost = spent.at(down, rungs[down] - 1).harm - spent.at(down, rungs[down]).harm
        for up in (name for name in rungs if name != down):
            top = rungs[up]
            while spent.could(up, top + 1):
                top += 1
            if top > rungs[up]:
                found.append((lost + spent.at(up, top).harm - spent.at(up, rungs[up]).harm, down, up, top))
    for _, down, up, top in sorted(found):
        moved = {down: problem.ladders[down][rungs[down] - 1].pair, up: problem.ladders[up][top].pair}
        if problem.fits(candidate := {**choice, **moved}):
            yield candidate


def _rung(problem: Problem, name: str, choice: Choice) -> int:
    """A layer's place on its ladder. A pair that is on none, as several budgets allow, stands for the dearest rung that
    harms no less."""
    ladder, harm = problem.ladders[name], problem.harm[name][choice[name]]
    exact = [rung for rung, option in enumerate(ladder) if option.pair == choice[name]]
    return (exact or [rung for rung, option in enumerate(ladder) if option.harm >= harm][-1:] or [0])[0]
