"""Step sizes before anything is learned: the search that minimizes the p-norm of the error, for every width on its own.

Source: PTMQ §1.3 (p = 2.4). Weights: symmetric, per output channel, thresholds i/100 of the channel's maximum.
Activations: per tensor; one-sided tensors by threshold, two-sided ones by range and zero point, of a sample. Where
wide grids leave little to find the search is coarser: above 4 bits weights try 51 to 100 % alone, two-sided activations
20 to 100 % from 6 bits on and every second range below.
Tables: quant.levels, of all values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq_lightning.quant.levels import Distribution, activation_tables
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, passthrough, quantizers_of

STYLES = ("free", "nested", "power_of_two")
SAMPLE = 1 << 15  # values of a tensor that the activation search looks at


@dataclass(frozen=True)
class StepSize:
    """How weight steps of the widths hang together (PTMQ §2).

    free: one search per width. nested: s_b = s_anchor * 2^(anchor - b), except for free_widths. power_of_two:
    s_b = s_8 * 2^t, 0 <= t <= 8 - b, t per channel and width. learn: steps also get gradients. p: of the error norm.
    """

    style: str = "free"
    anchor: int = 4
    free_widths: tuple[int, ...] = ()
    learn: bool = False
    p: float = 2.4

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ConfigError(f"found step_size {self.style!r}; expected one of {', '.join(STYLES)}.")


def weight_steps(weight: Tensor, widths: Sequence[int], how: StepSize) -> Tensor:
    """Steps (K, O) of a weight (O, ...) for K widths."""
    rows = weight.detach().flatten(1).float()
    if how.style == "free":
        return torch.stack([_search_weight(rows, bits, how.p) for bits in widths])
    if how.style == "nested":
        anchor = _search_weight(rows, how.anchor, how.p)
        return torch.stack(
            [
                _search_weight(rows, bits, how.p) if bits in how.free_widths else anchor * 2.0 ** (how.anchor - bits)
                for bits in widths
            ]
        )
    finest = _search_weight(rows, grid_top := max(*widths, 8), how.p)
    return torch.stack([_power_of_two(rows, finest, bits, grid_top, how.p) for bits in widths])


def _search_weight(rows: Tensor, bits: int, p: float) -> Tensor:
    """Best step (O,) for rows (O, C): i/100 of max|W| over (2^b - 1)/2 levels."""
    peak = rows.abs().amax(dim=1).clamp_min(grid.EPS)
    unit = peak / ((2**bits - 1) / 2)
    candidates = [unit * (i / 100) for i in range(101 - (100 if bits <= 4 else 50), 101)]
    return _best(rows, candidates, bits, p)


def _power_of_two(rows: Tensor, finest: Tensor, bits: int, top: int, p: float) -> Tensor:
    """Best of finest * 2^t, 0 <= t <= top - bits (PTMQ §2: beyond that no shift of the widest code tells the rest), per
    channel."""
    return _best(rows, [finest * 2.0**t for t in range(top - bits + 1)], bits, p)


def _best(rows: Tensor, candidates: Sequence[Tensor], bits: int, p: float) -> Tensor:
    """The candidate (O,) with the least p-norm error in each row (O, C)."""
    low, high = grid.limits(bits)
    best, error = candidates[-1], torch.full_like(candidates[-1], torch.inf)
    for step in candidates:
        s = step.clamp_min(grid.EPS).unsqueeze(1)
        found = (torch.round(rows / s).clamp_(low, high).mul_(s).sub_(rows)).abs_().pow_(p).mean(dim=1)
        best, error = torch.where(found < error, step, best), torch.minimum(found, error)
    return best.clamp_min(grid.EPS)


def activation_step(sample: Tensor, low: float, high: float, bits: int, p: float = 2.4) -> tuple[float, float]:
    """Step and zero point of a tensor from a sample (M,) of its values and its extremes."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    if high - low <= 0:
        return 1.0, 0.0
    fractions = torch.arange(1, 101, dtype=torch.float32) / 100
    if low == 0 or high == 0:  # one-sided: the threshold alone
        steps = fractions * (high - low) / levels
        zeros = torch.full_like(steps, 0.0 if low == 0 else float(levels))
    elif bits >= 6:  # the range shrinks in proportion
        steps = fractions[19:] * (high - low) / levels
        zeros = torch.round(-low * fractions[19:] / steps).clamp(0, levels)
    else:  # range and zero point, both
        steps = (fractions[1::2] * (high - low) / levels).repeat_interleave(levels + 1)
        zeros = torch.arange(levels + 1, dtype=torch.float32).repeat(50)
        sample = sample[:: max(1, bits - 2)] if len(sample) > SAMPLE // 8 else sample
    errors = []
    for s, z in zip(steps.split(64), zeros.split(64), strict=True):  # (64, M) at a time
        s, z = s.unsqueeze(1), z.unsqueeze(1)
        q = torch.round(sample / s).add_(z).clamp_(0, levels).sub_(z).mul_(s)
        errors.append(q.sub_(sample).abs_().pow_(p).mean(dim=1))
    best = int(torch.cat(errors).argmin())
    return float(steps[best]), float(zeros[best])


@torch.no_grad()
def calibrate(model: MultiBitModel, images: Tensor, *, p: float = 2.4, batch: int = 32, seed: int = 0) -> None:
    """Set every activation quantizer's steps, zero points and tables; images (N, C, H, W) run through the float
    network."""
    seen: dict[str, list[Tensor]] = {}
    spread: dict[str, Distribution] = {}
    ranges: dict[str, tuple[float, float]] = {}
    hooks = []
    generator = torch.Generator().manual_seed(seed)
    calls = -(-len(images) // batch)

    def watch(key: str) -> object:
        def hook(_module: object, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].float()
            if quantizers[key].tables is None:
                pick = torch.randint(x.numel(), (-(-SAMPLE // calls),), generator=generator)
                seen.setdefault(key, []).append(x.flatten()[pick.to(x.device)].cpu())
            else:
                tokens = model.layers[quantizers[key].owner].kind == "linear"
                spread.setdefault(key, Distribution()).count(x, p if tokens else None)
            low, high = ranges.get(key, (0.0, 0.0))
            ranges[key] = (min(low, float(x.min())), max(high, float(x.max())))

        return hook

    quantizers: dict[str, ActivationQuantizer] = {}
    for index, block in enumerate(model.blocks):
        for path, quantizer in quantizers_of(block):
            quantizers[f"{index}.{path}"] = quantizer
            hooks.append(quantizer.register_forward_pre_hook(watch(f"{index}.{path}")))
    try:
        with passthrough(model):
            for part in images.split(batch):
                model(part)
    finally:
        for handle in hooks:
            handle.remove()
    for key, quantizer in quantizers.items():
        device = quantizer.steps.device
        if quantizer.tables is None:
            sample = torch.cat(seen[key])
            found = [activation_step(sample, *ranges[key], bits, p) for bits in quantizer.widths]
        else:
            tables = activation_tables(*spread[key].seen(), *ranges[key], quantizer.widths, p)
            found = [(step, zero) for step, zero, _ in tables]
            quantizer.tables = torch.stack([table for _, _, table in tables]).to(device)
        quantizer.steps = torch.tensor([s for s, _ in found], device=device)
        quantizer.zero_points = torch.tensor([z for _, z in found], device=device)
