"""Swaps of two layers, ranked by the divergence of the whole network: what additive harm leaves out, interactions.

One layer goes down a rung of its ladder, or none, and another goes up as far as the budgets then allow. The candidates
are tried in the order of the additive harm that they would cost. One is kept where the true divergence surely falls,
and the search goes on from there: whenever it is stopped, what it holds is the best so far.

"Surely" is by more than two standard errors over the images. A few images hold most of a divergence, so many a swap
lowers its mean by chance, and does nothing for images that the search does not see. N images.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from operator import itemgetter

from torch import Tensor

from ptmq_lightning.allocate.greedy import Spent
from ptmq_lightning.allocate.problem import Choice, Problem

log = logging.getLogger(__name__)

SURE = 2.0  # standard errors


def swap(
    problem: Problem,
    choice: Choice,
    divergence: Callable[[Choice], Tensor],
    seconds: float,
    *,
    sure: float = SURE,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The best choice that was found in time, at worst the given one.

    Args:
        problem: with the budgets that every choice keeps.
        choice: where to start.
        divergence: of the whole network at a choice, on each image (N,).
        seconds: after which no further candidate is tried; 0: none is.
        sure: standard errors by which the divergence has to fall; 0: any fall counts.
    """
    if seconds <= 0:
        return choice
    started, tried, kept = clock(), 0, 0
    best, least, seen = choice, divergence(choice), {_key(choice)}
    improved = True
    while improved:
        improved = False
        for candidate in _neighbors(problem, best):
            if clock() - started >= seconds:
                break
            if _key(candidate) in seen:
                continue
            seen.add(_key(candidate))
            tried += 1
            if below(found := divergence(candidate), least, sure):
                best, least, improved = candidate, found, True
                kept += 1
                break
    if tried:
        log.info("%d swaps tried, %d kept, in %.1f s", tried, kept, clock() - started)
    return best


def below(one: Tensor, other: Tensor, sure: float) -> bool:
    """Whether a divergence (N,) is on average below another by more than so many standard errors of the difference."""
    gain = other - one
    return float(gain.mean()) > sure * float(gain.std(correction=0)) / math.sqrt(len(gain))


def _key(choice: Choice) -> tuple[object, ...]:
    return tuple(choice.items())


def _neighbors(problem: Problem, choice: Choice) -> Iterator[Choice]:
    """The choice after every swap, or step up alone, that the budgets allow, the one of least additive harm first."""
    rungs = {name: _rung(problem, name, choice) for name in choice}
    found: list[tuple[float, int, Choice]] = []
    for down in (None, *(name for name, rung in rungs.items() if rung)):
        spent, moved, lost = Spent(problem, dict(rungs)), Choice(), 0.0
        if down is not None:
            below, before = spent.at(down, rungs[down] - 1), spent.at(down, rungs[down])
            moved, lost = {down: below.pair}, below.harm - before.harm
            spent.move(down, rungs[down] - 1)
        for up in (name for name in rungs if name != down):
            top = rungs[up]
            while spent.could(up, top + 1):
                top += 1
            if top > rungs[up]:
                gained = spent.at(up, rungs[up]).harm - spent.at(up, top).harm
                found.append((lost - gained, len(found), {**choice, **moved, up: spent.at(up, top).pair}))
    for _, _, candidate in sorted(found, key=itemgetter(0, 1)):
        if problem.fits(candidate):
            yield candidate


def _rung(problem: Problem, name: str, choice: Choice) -> int:
    """A layer's place on its ladder. A pair that is on none, as several budgets allow, stands for the dearest rung that
    harms no less."""
    ladder, harm = problem.ladders[name], problem.harm[name][choice[name]]
    exact = [rung for rung, option in enumerate(ladder) if option.pair == choice[name]]
    return (exact or [rung for rung, option in enumerate(ladder) if option.harm >= harm][-1:] or [0])[0]
