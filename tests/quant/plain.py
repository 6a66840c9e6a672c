"""The step searches written out, every candidate on every value: what the fast forms are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq_lightning.quant.steps import StepSize
from ptmq_lightning.runtime import grid


def weight_steps(weight: Tensor, widths: Sequence[int], how: StepSize) -> Tensor:
    """Step sizes (K, O) of a weight (O, ...)."""
    rows = weight.detach().flatten(1).float()
    if how.name == "free":
        return torch.stack([search_weight(rows, bits, how.p) for bits in widths])
    finest = search_weight(rows, 8, how.p)
    return torch.stack(
        [best(rows, [finest * 2.0**t for t in range(9 - bits)], bits, how.p) for bits in widths]  # power_of_two
    )


def search_weight(rows: Tensor, bits: int, p: float) -> Tensor:
    """Best step (O,) for rows (O, C): i/100 of max|W| over (2^b - 1)/2 levels."""
    peak = rows.abs().amax(dim=1).clamp_min(grid.EPS)
    unit = peak / ((2**bits - 1) / 2)
    return best(rows, [unit * (i / 100) for i in range(1 if bits <= 4 else 51, 101)], bits, p)


def best(rows: Tensor, candidates: Sequence[Tensor], bits: int, p: float) -> Tensor:
    """The candidate (O,) with the least p-norm error in each row (O, C)."""
    found, error = candidates[-1], torch.full_like(candidates[-1], torch.inf)
    for step in candidates:
        score = weight_error(rows, step, bits, p)
        found, error = torch.where(score < error, step, found), torch.minimum(score, error)
    return found.clamp_min(grid.EPS)


def weight_error(rows: Tensor, step: Tensor, bits: int, p: float) -> Tensor:
    """Mean of |error|^p (O,) of rows (O, C) at a step (O,), float32 as the search was."""
    s = step.clamp_min(grid.EPS).unsqueeze(1)
    return (torch.round(rows / s).clamp_(*grid.limits(bits)).mul_(s).sub_(rows)).abs_().pow_(p).mean(dim=1)
