"""The step searches written out, every candidate on every value: what the fast forms are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq_lightning.quant.levels import ENDS, best_tables
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
