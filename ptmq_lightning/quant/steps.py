"""Step sizes before anything is learned: the search that minimizes the p-norm of the error, for every width on its own.

Source: PTMQ §1.3 (p = 2.4). Weights: per output channel, thresholds i/100 of the channel's maximum, above 4 bits 51 to
100 % alone, as wide grids leave little to find; symmetric, or with the best of three zero points. Activations: per
tensor, quant.activation_steps, of a sample. Tables: quant.levels, of all values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ptmq_lightning.quant.activation_steps import activation_steps
from ptmq_lightning.quant.counts import LatentCounts
from ptmq_lightning.quant.levels import Distribution, activation_tables
from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.hooks import watched_inputs
from ptmq_lightning.runtime.keys import key
from ptmq_lightning.runtime.layers import ActivationQuantizer
from ptmq_lightning.runtime.model import MultiBitModel, passthrough, quantizers_of
from ptmq_lightning.runtime.registry import Registry
from ptmq_lightning.runtime.spec import MAX_BITS, MIN_BITS, MOST_ZERO, ZEROS

ROWS = 256  # output channels that are searched at once: their counts, 4 MB, stay in a cache
SAMPLE = 1 << 15  # values of a tensor that the activation search looks at


class Grid(NamedTuple):
    """Step sizes float32 and zero points int8, in half levels, of a width: (O,)."""

    step: Tensor
    zero: Tensor


# the counts of a weight's integers, its widths and the keys -> the grid of each width
Search = Callable[[LatentCounts, Sequence[int], "StepSize"], list[Grid]]
STEP_SIZES: Registry[Search] = Registry("step_size")


@dataclass(frozen=True)
class StepSize:
    """How the step sizes of a weight's widths hang together (PTMQ §2)."""

    name: str = key("free", "how the weights' step sizes are tied", choices=STEP_SIZES.names)
    anchor: int = key(4, "nested: the width that the others are tied to", least=MIN_BITS, most=MAX_BITS)
    free_widths: list[int] = key(factory=list, help="nested: weight widths that are not tied")
    learn: bool = key(False, "learn the weights' step sizes of the drawn widths")
    p: float = key(2.4, "norm of the error in the search of step sizes")
    zero_points: list[int] = key(
        factory=list,
        help="weight widths at which each output channel takes the zero point that fits it best: none, half a level or "
        "a level; a width whose steps are tied has none",
    )

    def __post_init__(self) -> None:
        _ = STEP_SIZES[self.name]  # refuses an unknown one
        if wide := [bits for bits in self.zero_points if not MIN_BITS <= bits <= MOST_ZERO]:
            raise ConfigError(
                f"found step_size.zero_points with {wide[0]} bits; expected widths from {MIN_BITS} to {MOST_ZERO}, as "
                f"wider ones have nothing to gain by it."
            )


def weight_grids(weight: Tensor, widths: Sequence[int], how: StepSize) -> Grid:
    """Step sizes and zero points, each (K, O), of a weight (O, ...) on the latent grid for K widths."""
    parts = [LatentCounts(rows.float()) for rows in weight.detach().split(ROWS)]
    found = [zip(*STEP_SIZES[how.name](part, widths, how), strict=True) for part in parts]
    steps, zeros = zip(*((torch.stack(step), torch.stack(zero)) for step, zero in found), strict=True)
    return Grid(torch.cat(steps, dim=1), torch.cat(zeros, dim=1))


@STEP_SIZES.register("free")
def _free(counts: LatentCounts, widths: Sequence[int], how: StepSize) -> list[Grid]:
    """One search for each width."""
    return [_own_grid(counts, bits, how) for bits in widths]


@STEP_SIZES.register("nested")
def _nested(counts: LatentCounts, widths: Sequence[int], how: StepSize) -> list[Grid]:
    """s_b = s_anchor * 2^(anchor - b), except for free_widths."""
    anchor = _search_weight(counts, how.anchor, how.p)[0]
    return [
        _own_grid(counts, bits, how) if bits in how.free_widths else _symmetric(anchor * 2.0 ** (how.anchor - bits))
        for bits in widths
    ]


@STEP_SIZES.register("power_of_two")
def _powers_of_two(counts: LatentCounts, widths: Sequence[int], how: StepSize) -> list[Grid]:
    """s_b = s_8 * 2^t, 0 <= t <= 8 - b, t for each channel and width."""
    widest = max(*widths, 8)
    finest, share, _ = _search_weight(counts, widest, how.p)
    return [_symmetric(_power_of_two(counts, finest, share, bits, widest, how.p)) for bits in widths]


def _symmetric(step: Tensor) -> Grid:
    return Grid(step, torch.zeros(step.shape, dtype=torch.int8, device=step.device))


def _shares(bits: int) -> list[float]:
    """The thresholds that a search tries, as shares of max|W|."""
    return [i / 100 for i in range(101 - (100 if bits <= 4 else 50), 101)]


def _steps(bits: int) -> tuple[float, ...]:
    """The steps of these thresholds over (2^b - 1)/2 levels, as shares of max|W|."""
    return tuple(share / ((2**bits - 1) / 2) for share in _shares(bits))


def _own_grid(counts: LatentCounts, bits: int, how: StepSize) -> Grid:
    """The best step size of each channel and, where the width may have one, zero point: of equal ones none."""
    step, _, least = _search_weight(counts, bits, how.p)
    found = _symmetric(step)
    for zero in ZEROS[1:] if bits in how.zero_points else ():
        step, _, error = _search_weight(counts, bits, how.p, zero)
        better = error < least
        least = torch.where(better, error, least)
        found = Grid(torch.where(better, step, found.step), found.zero.masked_fill(better, zero))
    return found


def _search_weight(counts: LatentCounts, bits: int, p: float, zero: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Best step (O,) of each channel, its place (O,) in _shares, and its error (O,)."""
    least, best = counts.errors(_steps(bits), bits, p, zero=zero).min(dim=1)
    unit = counts.peak.clamp_min(grid.EPS) / ((2**bits - 1) / 2)
    shares = torch.tensor(_shares(bits), device=unit.device)
    return (unit * shares[best]).clamp_min(grid.EPS), best, least


def _power_of_two(counts: LatentCounts, finest: Tensor, share: Tensor, bits: int, top: int, p: float) -> Tensor:
    """Best of finest * 2^t, 0 <= t <= top - bits (PTMQ §2: beyond that no shift of the widest code tells the rest), per
    channel. share: where each channel's finest step (O,) stands in _shares(top)."""
    starts, start = share.unique(return_inverse=True)
    shifts = top - bits + 1
    errors = counts.errors(tuple(_steps(top)[i] for i in starts), bits, p, shifts=shifts)
    own = errors.view(len(finest), -1, shifts)[torch.arange(len(finest), device=start.device), start]
    return finest * 2.0 ** own.argmin(dim=1)


@torch.no_grad()
def calibrate(
    model: MultiBitModel,
    images: Tensor,
    *,
    p: float = 2.4,
    batch: int = 32,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, total, unit: None,
) -> None:
    """Set every activation quantizer's steps, zero points and tables.

    Args:
        images: (N, C, H, W), run through the float network.
        p: norm of the error.
        batch: images at a time.
        seed: of the values that the search looks at.
        progress: called with (done, total, what is counted): images first, then tensors.
    """
    quantizers: dict[str, ActivationQuantizer] = {
        f"{index}.{path}": quantizer
        for index, block in enumerate(model.blocks)
        for path, quantizer in quantizers_of(block)
    }
    tokens = {name: model.layers[quantizer.owner].kind == "linear" for name, quantizer in quantizers.items()}
    share = -(-SAMPLE // -(-len(images) // batch))  # of the sample, from each batch
    generator = torch.Generator().manual_seed(seed)
    seen = {name: _Seen(share, p if tokens[name] else None, generator) for name in quantizers}
    with watched_inputs(quantizers, lambda name, x: seen[name].add(x, quantizers[name])), passthrough(model):
        for number, part in enumerate(images.split(batch)):
            model(part)
            progress(min((number + 1) * batch, len(images)), len(images), "image")
    for number, (name, quantizer) in enumerate(quantizers.items()):
        seen[name].set(quantizer, p)
        progress(number + 1, len(quantizers), "tensor")


class _Seen:
    """What is kept of a tensor that many batches show: its extremes, and a sample or the distribution of its values."""

    def __init__(self, share: int, norm: float | None, generator: torch.Generator) -> None:
        self.share, self.norm, self.generator = share, norm, generator
        self.low = self.high = 0.0
        self.sample: list[Tensor] = []
        self.spread: Distribution | None = None

    def add(self, x: Tensor, quantizer: ActivationQuantizer) -> None:
        x = x.float()
        if quantizer.tables is None:
            pick = torch.randint(x.numel(), (self.share,), generator=self.generator)
            self.sample.append(x.flatten()[pick.to(x.device)].cpu())
        else:
            self.spread = self.spread or Distribution()
            self.spread.count(x, self.norm)
        low, high = torch.aminmax(x)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def set(self, quantizer: ActivationQuantizer, p: float) -> None:
        """The quantizer's steps and zero points, and its tables where it has some."""
        device, widths = quantizer.steps.device, quantizer.widths
        if self.spread is None:
            found = activation_steps(torch.cat(self.sample), self.low, self.high, widths, p)
        else:
            tables = activation_tables(*self.spread.seen(), self.low, self.high, widths, p)
            found = [(step, zero) for step, zero, _ in tables]
            quantizer.tables = torch.stack([table for _, _, table in tables]).to(device)
        quantizer.steps = torch.tensor([s for s, _ in found], device=device)
        quantizer.zero_points = torch.tensor([z for _, z in found], device=device)
