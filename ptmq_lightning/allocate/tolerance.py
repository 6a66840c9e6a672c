"""The cheapest assignment that loses no more than allowed, by halving what may be spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ptmq_lightning.allocate.problem import Budget, Choice, Problem
from ptmq_lightning.allocate.sensitivity import Sensitivity
from ptmq_lightning.runtime.errors import ConfigError

HALVINGS = 9  # the limit is then known to a five-hundredth of the range


def cheapest(
    harm: Sensitivity,
    budget: Budget,
    search: Callable[[Problem], Choice],
    drop: Callable[[Choice], float],
    most: float,
    what: str = "agreement with float",
) -> Choice:
    """The least of what was tried under a budget that keeps ``drop`` at ``most`` or below.

    Args:
        budget: its limit is looked for.
        search: solves one problem.
        drop: what an assignment loses on images, in the unit of ``most``.
        what: is lost, for the message.

    Raises:
        ConfigError: even the widest pairs lose more.
    """
    low, high = budget.ends()
    best = search(Problem(harm, (replace(budget, limit=high),)))
    if (least := drop(best)) > most:
        raise ConfigError(
            f"even the widest pairs lose {least:.2f} points of {what} on these images; expected at most {most:g}: "
            "allow more, give more images, or learn a wider pair"
        )
    high = budget.spent(best)
    for _ in range(HALVINGS):
        limit = (low + high) / 2
        choice = search(Problem(harm, (replace(budget, limit=limit),)))
        if drop(choice) <= most:
            best, high = choice, budget.spent(choice)
        else:
            low = limit
    return best
