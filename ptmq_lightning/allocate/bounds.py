"""Options that no best choice can hold, found by a Lagrangian bound: most of them, in milliseconds.

For multipliers m >= 0 the least of sum(harm + m * price) - m * limit, each layer by itself, is at most the harm of any
choice within the limits (Geoffrion 1974). Where it stays above a known choice's harm once a layer is made to take an
option, the option can go. L layers, K options of a layer at most, B budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ptmq_lightning.allocate.problem import Choice, Option, Problem

ROUNDS = 300  # of subgradient ascent
SLACK = 1e-9  # of sums of floating point numbers, relative
Options = Mapping[str, Sequence[Option]]


def promising(
    problem: Problem, options: Options, start: Choice | None
) -> tuple[dict[str, list[Option]], Choice | None]:
    """The options that may be in a choice better than every one that is known, and the best one that is.

    Args:
        problem: with at least one budget.
        options: of each layer.
        start: a choice that keeps the budgets, where one is known.
    """
    harm, prices, room = _arrays(problem, options)
    rows, best, known = np.arange(len(harm)), start, np.isfinite(harm)
    least = np.inf if start is None else problem.total(start)
    worst = float(np.where(known, harm, 0).max(axis=1).sum())
    multipliers, highest, kept = np.zeros(len(room)), -np.inf, known
    for _ in range(ROUNDS):
        paid = harm + np.tensordot(multipliers, prices, 1)  # (L, K)
        taken = paid.argmin(axis=1)
        cheapest = paid[rows, taken]  # (L,)
        bound = float(cheapest.sum() - multipliers @ room)
        highest = max(highest, bound)
        kept = kept & (bound + paid - cheapest[:, None] <= least * (1 + SLACK))
        over = prices[:, rows, taken].sum(axis=1) - room  # (B,), the slope of the bound
        if (over <= 0).all():
            choice = {name: of[int(k)].pair for (name, of), k in zip(options.items(), taken, strict=True)}
            if (found := problem.total(choice)) < least and problem.fits(choice):
                best, least = choice, found
        slope = np.where((multipliers > 0) | (over > 0), over, 0)
        if not slope.any():
            break
        multipliers = np.maximum(multipliers + _step(min(least, worst) - highest, slope), 0)
    rows_kept = zip(options.items(), kept, strict=True)
    return {name: [o for o, k in zip(of, row, strict=False) if k] for (name, of), row in rows_kept}, best


def _step(gap: float, slope: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of what would close the gap between the bound and the best choice if the slope stayed (Polyak 1969)."""
    return 0.5 * max(gap, 0.0) / float(slope @ slope) * slope


def _arrays(problem: Problem, options: Options) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Harm (L, K), infinite where a layer has fewer options; prices (B, L, K) and limits (B,) as shares of them."""
    most = max(len(of) for of in options.values())
    harm, prices = np.full((len(options), most), np.inf), np.zeros((len(problem.budgets), len(options), most))
    room = np.array([budget.limit - budget.fixed for budget in problem.budgets])
    scale = np.where(room > 0, room, 1.0)
    for row, of in enumerate(options.values()):
        harm[row, : len(of)] = [option.harm for option in of]
        prices[:, row, : len(of)] = np.array([option.prices for option in of]).T / scale[:, None]
    return harm, prices, room / scale
