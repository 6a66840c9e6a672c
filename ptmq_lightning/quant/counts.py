"""How often each integer of the latent grid occurs in each output channel: from it follows the error of any step size.

Source: ours. A channel is at most 2,047 counts, however many weights it has, and the error of a weight at a step size
is that of its integer: one table (steps, integers) serves all channels, and the errors of all steps in all channels
are one matrix product. The plain form, every step on every weight, takes forty times as long; it stands in
tests/quant/plain.py and finds the same steps.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ptmq_lightning.runtime import grid

TABLES = 16  # held at once: one for each width of a search, 1.6 MB each


class LatentCounts:
    """The counts of the integers of a weight (O, ...) on the latent grid.

    peak: the largest |W| of each channel (O,), float32. Weights that lie beside the grid are counted at their nearest
    integer.
    """

    def __init__(self, weight: Tensor) -> None:
        self.peak = weight.abs().flatten(1).amax(dim=1)
        self.device = weight.device
        # on the CPU: a GPU adds in no fixed order, and refuses under deterministic algorithms
        n = grid.latent(weight.cpu())[0].flatten(1)
        top = n.abs().amax(dim=1).int()
        # (rows, largest integer, counts (rows, 2 top + 1)): nearly all channels reach the end of the grid, those of
        # next to nothing do not
        self._parts = [(rows, most, _counted(n[rows], most)) for most, rows in _alike(top)]

    def errors(self, shares: tuple[float, ...], bits: int, p: float, *, shifts: int = 1, zero: int = 0) -> Tensor:
        """Sum of |error|^p, in units of the latent step, of each channel at each step share * peak * 2^t, t below
        shifts: (O, I * shifts) float64. zero: the zero point in half levels."""
        errors = torch.empty(len(self.peak), len(shares) * shifts, dtype=torch.float64)
        for rows, most, counts in self._parts:
            errors[rows] = counts @ _table(most, shares, shifts, bits, p, zero).T
        return errors.to(self.device)


def _alike(top: Tensor) -> list[tuple[int, Tensor | slice]]:
    """Each value of top (O,) and the rows that have it."""
    if bool((top == top[0]).all()):
        return [(int(top[0]), slice(None))]
    return [(int(most), (top == most).nonzero().flatten()) for most in top.unique()]


def _counted(n: Tensor, top: int) -> Tensor:
    """Counts (O, 2 top + 1), float64, of the integers -top to top in each row of n (O, C)."""
    bins = 2 * top + 1
    places = n + (torch.arange(len(n), dtype=torch.int32) * bins + top).unsqueeze(1)
    return torch.bincount(places.flatten(), minlength=len(n) * bins).view(-1, bins).double()


@functools.lru_cache(maxsize=TABLES)
def _table(top: int, shares: tuple[float, ...], shifts: int, bits: int, p: float, zero: int) -> Tensor:
    """|(code - zero/2) r - n|^p of the integers n from -top to top at the steps r = share * top * 2^t in units of the
    latent step, (I * shifts, 2 top + 1) float64. No share is below EPS, the latent step of a channel that ends before
    the grid does."""
    n = torch.arange(-top, top + 1, dtype=torch.int16)
    starts = (torch.tensor(shares, dtype=torch.float64) * top).clamp_min(1)
    r = starts.outer(2.0 ** torch.arange(shifts)).flatten()
    zeros = torch.full(r.shape, zero, dtype=torch.int8) if zero else None
    levels = grid.codes(n.expand(len(r), -1), (1 / r).float(), bits, zero=zeros).double().sub_(zero / 2)
    return (levels.mul_(r.unsqueeze(1)) - n.double()).abs_().pow_(p)
