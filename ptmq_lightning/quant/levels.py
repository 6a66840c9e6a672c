"""Levels that are not equally spaced, for asymmetric activations such as what leaves a GELU.

Source: 1-D k-means solved exactly (Wang & Song 2011, Ckmeans.1d.dp), here on the codes of a uniform 8-bit grid, so that
a device reads a code's level in a table of bytes and multiplies integers as before; the error norm is that of the step
search (PTMQ §1.3), where an error counts by the size of its token, as it does in the loss (§9.3): a massive activation
stretches the grid only as far as its own token gains by it. PTQ4ViT's twin uniform levels are one such table, the
uniform ones another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq_lightning.runtime import grid

UNSEEN = 1e-9  # share of all that a code counts beside what was seen of it: spare levels go where nothing was
ENDS = tuple(2 ** (-k / 3) for k in range(16))  # of the grid, as shares of the largest value


class Distribution:
    """How often every value occurs, to 1 part in 1,024: the sign, exponent and first 10 bits of the fraction of a
    float32. Rare values decide where a grid ends, and a sample has them or not by chance."""

    DROPPED = 13  # bits of the fraction
    BINS = 1 << (32 - DROPPED)

    def __init__(self) -> None:
        self.mass = torch.zeros(self.BINS, dtype=torch.float64)

    def count(self, x: Tensor, p: float | None) -> None:
        """x (..., C), float32. p: each value counts 1 / the mean of |x|^p over its C values; None: 1."""
        rows = x.cpu().contiguous().view(-1, x.shape[-1])  # a GPU adds in no fixed order
        for part in rows.split(max(1, grid.PIECE // rows.shape[1])):
            bins = (part.view(torch.int32) >> self.DROPPED).add_(self.BINS // 2)
            weight = torch.ones(len(part), 1, dtype=torch.float64)
            if p is not None:
                weight /= part.abs().pow_(p).mean(dim=-1, keepdim=True).clamp_min_(grid.EPS)
            self.mass.scatter_add_(0, bins.flatten().long(), weight.expand(part.shape).flatten())

    def seen(self) -> tuple[Tensor, Tensor]:
        """The values (M,), the middles of their bins, and what each counts, float32."""
        bins = self.mass.nonzero().flatten()
        bits = ((bins - self.BINS // 2) << self.DROPPED) + (1 << (self.DROPPED - 1))
        return bits.int().view(torch.float32), (self.mass[bins] / self.mass.sum()).float()


def best_tables(counts: Tensor, widths: Sequence[int], p: float) -> list[Tensor]:
    """For each width a the table (256,) code -> level, float64, of at most 2^a levels with the least
    sum over codes m of counts_m * |level(m) - m|^p. counts (256,)."""
    codes = torch.arange(len(counts), dtype=torch.float64)
    counts = counts.double() + UNSEEN * counts.sum().double()
    levels = _best_levels(counts, codes, p, {2**bits for bits in widths if 2**bits < len(counts)})
    found = []
    for bits in widths:
        chosen = levels.get(2**bits, codes)
        found.append(chosen[(codes.unsqueeze(1) - chosen).abs().argmin(dim=1)])
    return found


def _best_levels(counts: Tensor, codes: Tensor, p: float, wanted: set[int]) -> dict[int, Tensor]:
    """The best k levels, for every wanted k, by dynamic programming over where a cell ends."""
    cost, level = _cells(counts, codes, p)
    best = torch.full((len(codes) + 1,), torch.inf, dtype=torch.float64)  # least cost of the codes below each end
    best[0] = 0
    starts: list[list[int]] = []  # of the last cell, for every number of cells and every end
    found = {}
    for cells in range(1, max(wanted, default=0) + 1):
        best, start = (best.unsqueeze(1) + cost).min(dim=0)
        starts.append(start.tolist())
        if cells in wanted:
            ends = [len(codes)]
            for row in reversed(starts):
                ends.append(row[ends[-1]])
            found[cells] = level[ends[:0:-1], ends[-2::-1]]
    return found


def _cells(counts: Tensor, codes: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Least cost, and the level that has it, of one level for the codes from i up to but not including j, each
    (n + 1, n + 1).

    The cost is convex in the level: the first level that is no worse than the next is the best one, and bisection finds
    it in all cells at once.
    """
    n = len(codes)
    each = (codes.unsqueeze(1) - codes).abs().pow(p) * counts  # [level, code]
    below = torch.cat([each.new_zeros(n, 1), each.cumsum(dim=1)], dim=1)  # cost of all codes below j at a level
    i, j = torch.triu_indices(n + 1, n + 1, offset=1)
    first, last = i, j - 1
    for _ in range(n.bit_length()):
        middle = (first + last) // 2  # below the last level, or the cell is done
        after = (middle + 1).clamp_max_(n - 1)
        rises = below[after, j] - below[after, i] >= below[middle, j] - below[middle, i]
        first, last = torch.where(rises, first, torch.minimum(after, last)), torch.where(rises, middle, last)
    cost = torch.full((n + 1, n + 1), torch.inf, dtype=torch.float64)
    level = torch.zeros((n + 1, n + 1), dtype=torch.float64)
    cost[i, j], level[i, j] = below[first, j] - below[first, i], codes[first]
    return cost, level


def activation_tables(
    values: Tensor, weight: Tensor, low: float, high: float, widths: Sequence[int], p: float = 2.4
) -> list[tuple[float, float, Tensor]]:
    """Step and zero point of the 8-bit grid and the table uint8 (256,) of each width, from values (M,) of a tensor,
    what the error of each counts (M,), and the tensor's extremes; the grid's upper end is searched for."""
    low, high = min(low, 0.0), max(high, 0.0)
    top = 2**grid.TABLE_BITS - 1
    if high - low <= 0:
        return [(1.0, 0.0, torch.arange(top + 1, dtype=torch.uint8))] * len(widths)
    uniform = torch.arange(top + 1, dtype=torch.float64)
    grids = [_Grid(values, (high * end - low) / top, low) for end in ENDS]
    floors = [each.error(uniform, weight, p) for each in grids]  # no table of a grid has less: its levels are codes
    best = [(grids[0].step, grids[0].zero, uniform.byte())] * len(widths)
    errors = [(float("inf"), len(ENDS))] * len(widths)
    for number in sorted(range(len(ENDS)), key=floors.__getitem__):
        rows = [row for row in range(len(widths)) if floors[number] <= errors[row][0]]  # the others cannot gain
        if not rows:
            break
        at = grids[number]
        for row, table in zip(rows, best_tables(at.counts(weight), [widths[row] for row in rows], p), strict=True):
            error = (at.error(table, weight, p), number)
            if error < errors[row]:
                errors[row], best[row] = error, (at.step, at.zero, table.byte())
    return best


class _Grid:
    """The codes of values (M,) on a uniform 8-bit grid."""

    def __init__(self, values: Tensor, step: float, low: float) -> None:
        self.values, self.step, self.zero = values, step, float(round(-low / step))
        self.codes = torch.round(values / step).add_(self.zero).clamp_(0, 2**grid.TABLE_BITS - 1).int()

    def counts(self, weight: Tensor) -> Tensor:
        """What each code counts (256,)."""
        return torch.bincount(self.codes, weight, minlength=2**grid.TABLE_BITS)

    def error(self, table: Tensor, weight: Tensor, p: float) -> float:
        """Of the levels that a table (256,) gives the codes."""
        return float((((table[self.codes] - self.zero) * self.step - self.values).abs().pow(p) * weight).mean())
