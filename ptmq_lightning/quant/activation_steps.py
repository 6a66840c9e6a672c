"""Step and zero point of an activation for every width: the search that minimizes the p-norm of the error of a sample.

Source: PTMQ §1.3 (p = 2.4). One-sided tensors by threshold, two-sided ones by range and zero point. Where wide grids
leave little to find the search is coarser: two-sided tensors try 20 to 100 % of the range from 6 bits on, and every
second range below.
What we do otherwise: the search looks at a histogram of the sample, whose bins are narrower than the steps that come
into question, and at the farthest values one by one. It takes a tenth of the time that the values themselves take
(tests/quant/plain.py) and ends within a few percent of their best error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TAIL = 32  # values at either end that are looked at one by one: how far they lie decides where the range ends
BINS = 16  # per level of a width
FEWEST, MOST = 128, 1024  # bins
AT_ONCE = 64  # candidates: with the bins they stay in a core's cache


def activation_steps(
    sample: Tensor, low: float, high: float, widths: Sequence[int], p: float = 2.4
) -> list[tuple[float, float]]:
    """Step and zero point of a tensor at each width, from a sample (M,) of its values and its extremes."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 0:
        return [(1.0, 0.0)] * len(widths)
    ordered = sample.sort().values
    return [_best(*histogram(ordered, bits), *_candidates(low, high, bits), bits, p) for bits in widths]


def histogram(ordered: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The mean of each bin, and how many of the values (M,), in order, lie in it; the farthest values stay alone."""
    bins = min(max(BINS * 2**bits, FEWEST), MOST)
    if len(ordered) <= bins + 2 * TAIL:
        return ordered, torch.ones_like(ordered)
    below, inner, above = ordered[:TAIL], ordered[TAIL:-TAIL], ordered[-TAIL:]
    width = ((inner[-1] - inner[0]) / bins).clamp_min(torch.finfo(inner.dtype).tiny)
    place = ((inner - inner[0]) / width).long().clamp_(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    mean = torch.bincount(place, inner.double(), minlength=bins) / count  # nan where a bin is empty
    alone, filled = torch.ones_like(below), count > 0
    values = torch.cat([below, mean[filled].to(inner.dtype), above])
    return values, torch.cat([alone, count[filled].to(inner.dtype), alone])


def _candidates(low: float, high: float, bits: int) -> tuple[Tensor, Tensor]:
    """Steps (I,) and zero points (I,) that a search tries."""
    levels = 2**bits - 1
    fractions = torch.arange(1, 101, dtype=torch.float32) / 100
    if low == 0 or high == 0:  # one-sided: the threshold alone
        steps = fractions * (high - low) / levels
        return steps, torch.full_like(steps, 0.0 if low == 0 else float(levels))
    if bits >= 6:  # the range shrinks in proportion
        steps = fractions[19:] * (high - low) / levels
        return steps, torch.round(-low * fractions[19:] / steps).clamp(0, levels)
    steps = (fractions[1::2] * (high - low) / levels).repeat_interleave(levels + 1)  # range and zero point, both
    return steps, torch.arange(levels + 1, dtype=torch.float32).repeat(50)


def _best(values: Tensor, count: Tensor, steps: Tensor, zeros: Tensor, bits: int, p: float) -> tuple[float, float]:
    """The candidate with the least p-norm error; values (M,), count (M,) of each."""
    errors = []
    for s, z in zip(steps.split(AT_ONCE), zeros.split(AT_ONCE), strict=True):  # (I, M) at a time
        s, z = s.unsqueeze(1), z.unsqueeze(1)
        q = torch.round(values / s).add_(z).clamp_(0, 2**bits - 1).sub_(z).mul_(s)
        errors.append(q.sub_(values).abs_().pow_(p) @ count)
    best = int(torch.cat(errors).argmin())
    return float(steps[best]), float(zeros[best])
