"""The step searches written out, every candidate on every value: what the fast forms are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq_lightning.quant.levels import ENDS, best_tables
from ptmq_lightning.quant.steps import Grid, StepSize
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.spec import ZEROS


def weight_grids(weight: Tensor, widths: Sequence[int], how: StepSize) -> Grid:
    """Step sizes and zero points (K, O) of a weight (O, ...)."""
    rows = weight.detach().flatten(1).float()
    if how.name == "free":
        found = [search_weight(rows, bits, how.p, ZEROS if bits in how.zero_points else (0,)) for bits in widths]
    else:  # power_of_two
        finest = search_weight(rows, 8, how.p).step
        found = [best(rows, [(finest * 2.0**t, 0) for t in range(9 - bits)], bits, how.p) for bits in widths]
    return Grid(torch.stack([step for step, _ in found]), torch.stack([zero for _, zero in found]))


def search_weight(rows: Tensor, bits: int, p: float, zeros: Sequence[int] = (0,)) -> Grid:
    """Best step and zero point (O,) for rows (O, C): i/100 of max|W| over (2^b - 1)/2 levels."""
    peak = rows.abs().amax(dim=1).clamp_min(grid.EPS)
    unit = peak / ((2**bits - 1) / 2)
    shares = range(1 if bits <= 4 else 51, 101)
    return best(rows, [(unit * (i / 100), zero) for zero in zeros for i in shares], bits, p)


def best(rows: Tensor, candidates: Sequence[tuple[Tensor, int]], bits: int, p: float) -> Grid:
    """The candidate (O,) with the least p-norm error in each row (O, C)."""
    found, error = candidates[-1][0], torch.full_like(candidates[-1][0], torch.inf)
    at = torch.zeros(len(rows), dtype=torch.int8)
    for step, zero in candidates:
        score = weight_error(rows, step, bits, p, zero)
        found, at = torch.where(score < error, step, found), at.masked_fill(score < error, zero)
        error = torch.minimum(score, error)
    return Grid(found.clamp_min(grid.EPS), at)


def weight_error(rows: Tensor, step: Tensor, bits: int, p: float, zero: int | Tensor = 0) -> Tensor:
    """Mean of |error|^p (O,) of rows (O, C) at a step (O,), float32 as the search was. zero: in half levels, one or
    (O,)."""
    half = torch.as_tensor(zero).view(-1, 1) / 2
    s = step.clamp_min(grid.EPS).unsqueeze(1)
    levels = torch.round(rows / s + half).clamp_(*grid.limits(bits)).sub_(half)
    return (levels.mul_(s).sub_(rows)).abs_().pow_(p).mean(dim=1)


def activation_step(sample: Tensor, low: float, high: float, bits: int, p: float = 2.4) -> tuple[float, float]:
    """Step and zero point of a tensor from a sample (M,) of its values and its extremes, every value looked at."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    fractions = torch.arange(1, 101, dtype=torch.float32) / 100
    if low == 0 or high == 0:
        steps = fractions * (high - low) / levels
        zeros = torch.full_like(steps, 0.0 if low == 0 else float(levels))
    elif bits >= 6:
        steps = fractions[19:] * (high - low) / levels
        zeros = torch.round(-low * fractions[19:] / steps).clamp(0, levels)
    else:
        steps = (fractions[1::2] * (high - low) / levels).repeat_interleave(levels + 1)
        zeros = torch.arange(levels + 1, dtype=torch.float32).repeat(50)
        sample = sample[:: max(1, bits - 2)]
    errors = [activation_error(sample, float(s), float(z), bits, p) for s, z in zip(steps, zeros, strict=True)]
    best = errors.index(min(errors))
    return float(steps[best]), float(zeros[best])


def activation_error(x: Tensor, step: float, zero: float, bits: int, p: float = 2.4) -> float:
    """Mean of |error|^p of the uniform quantizer."""
    y = grid.quantize_activation(x, torch.tensor(step), torch.tensor(zero), bits)
    return float((y - x).abs().pow(p).mean())


def activation_tables(
    values: Tensor, weight: Tensor, low: float, high: float, widths: Sequence[int], p: float = 2.4
) -> list[tuple[float, float, Tensor]]:
    """Step, zero point and table (256,) of each width: every end of the grid tried at every width."""
    best: list[tuple[float, float, Tensor]] = []
    errors = [float("inf")] * len(widths)
    for end in ENDS:
        step = (high * end - low) / 255
        zero = float(round(-low / step))
        q = torch.round(values / step).add_(zero).clamp_(0, 255).int()
        found = best_tables(torch.bincount(q, weight, minlength=256), widths, p)
        best = best or [(step, zero, table.byte()) for table in found]
        for row, table in enumerate(found):
            error = float((((table[q] - zero) * step - values).abs().pow(p) * weight).mean())
            if error < errors[row]:
                errors[row], best[row] = error, (step, zero, table.byte())
    return best
