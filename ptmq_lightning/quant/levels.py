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
        bins = (x.contiguous().view(torch.int32) >> self.DROPPED) + self.BINS // 2
        weight = torch.ones_like(x)
        if p is not None:
            weight /= x.abs().pow(p).mean(dim=-1, keepdim=True).clamp_min(grid.EPS)
        # on the CPU: a GPU adds in no fixed order, and refuses under deterministic algorithms
        self.mass += torch.bincount(bins.flatten().cpu(), weight.double().flatten().cpu(), minlength=self.BINS)

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
    most = 2 ** max((bits for bits in widths if 2**bits < len(counts)), default=0)
    levels = _best_levels(counts, codes, p, most)
    found = []
    for bits in widths:
        chosen = levels[2**bits] if 2**bits < len(counts) else codes
        found.append(chosen[(codes.unsqueeze(1) - chosen).abs().argmin(dim=1)])
    return found


def _best_levels(counts: Tensor, codes: Tensor, p: float, most: int) -> list[Tensor]:
    """The best k levels, for every k up to `most` (none for k = 0), by dynamic programming over where a cell ends."""
    cost, level = _cells(counts, codes, p)
    best = torch.full((len(codes) + 1,), torch.inf, dtype=torch.float64)  # least cost of the codes below each end
    best[0] = 0
    starts: list[Tensor] = []  # of the last cell, for every number of cells and every end
    found = [codes[:0]]
    for _ in range(most):
        best, start = (best.unsqueeze(1) + cost).min(dim=0)
        starts.append(start)
        end, chosen = len(codes), []
        for row in reversed(starts):
            first = int(row[end])
            chosen.append(level[first, end])
            end = first
        found.append(torch.stack(chosen[::-1]))
    return found


def _cells(counts: Tensor, codes: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Least cost, and the level that has it, of one level for the codes from i up to but not including j, each
    (n + 1, n + 1)."""
    n = len(codes)
    each = (codes.unsqueeze(1) - codes).abs().pow(p) * counts  # [level, code]
    below = torch.cat([each.new_zeros(n, 1), each.cumsum(dim=1)], dim=1)  # cost of all codes below j at a level
    cost = torch.full((n + 1, n + 1), torch.inf, dtype=torch.float64)
    level = torch.zeros((n + 1, n + 1), dtype=torch.float64)
    for i in range(n):
        least = (below[:, i + 1 :] - below[:, i : i + 1]).min(dim=0)
        cost[i, i + 1 :], level[i, i + 1 :] = least.values, codes[least.indices]
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
    best: list[tuple[float, float, Tensor]] = []
    errors = [float("inf")] * len(widths)
    for end in ENDS:
        step = (high * end - low) / top
        zero = float(round(-low / step))
        q = torch.round(values / step).add_(zero).clamp_(0, top).int()
        found = best_tables(torch.bincount(q, weight, minlength=top + 1), widths, p)
        best = best or [(step, zero, table.byte()) for table in found]
        for row, table in enumerate(found):
            error = float((((table[q] - zero) * step - values).abs().pow(p) * weight).mean())
            if error < errors[row]:
                errors[row], best[row] = error, (step, zero, table.byte())
    return best
