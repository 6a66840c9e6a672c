"""Rounding as a variable: the rectified sigmoid h(V), its start, its regularizer and the schedule of beta.

Source: AdaRound's form as PTMQ §1.2 and §1.5 give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq_lightning.runtime.errors import ConfigError

ZETA, GAMMA = 1.1, -0.1
EDGE = 1e-4  # the fraction starts within [EDGE, 1 - EDGE], so that h(V) never starts where its gradient is cut off
LATENT = ("ste", "flexround")  # kinds that learn a weight and round it to nearest: quant/latent.py
KINDS = ("shared", "offset", "per_group", "per_width", *LATENT, "nearest")


@dataclass(frozen=True)
class Rounding:
    """What is learned about rounding.

    kind: shared (one binary R, the paper's), offset (one tau in [0, 1] for all widths), per_group (one R per set of
    weight widths: planes), per_width (one R each), ste and flexround (one weight for all widths, rounded to nearest),
    nearest (nothing). init_width: V starts at this width's fraction. rate: factor on the learning rate.
    """

    kind: str = "shared"
    planes: tuple[tuple[int, ...], ...] = ()
    init_width: int = 4
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"found rounding {self.kind!r}; expected one of {', '.join(KINDS)}.")
        if self.kind == "per_group" and not self.planes:
            raise ConfigError("found rounding 'per_group' without planes; expected sets of widths, e.g. [[3], [4, 8]].")

    def plane_of(self, widths: Sequence[int]) -> dict[int, int]:
        """Weight width -> plane. A width in no listed set takes the plane of the nearest listed width, the wider
        first."""
        if self.kind in ("shared", "offset"):
            return {bits: 0 for bits in widths}
        if self.kind == "per_width":
            return {bits: row for row, bits in enumerate(widths)}
        if self.kind == "nearest" or self.kind in LATENT:
            return {}
        listed = {bits: row for row, plane in enumerate(self.planes) for bits in plane}
        chosen = {b: listed[min(listed, key=lambda other: (abs(other - b), -other))] for b in widths}
        used = sorted(set(chosen.values()))
        return {bits: used.index(row) for bits, row in chosen.items()}


@dataclass(frozen=True)
class BetaSchedule:
    """beta(t): no regularizer for t < warmup * T, then linear from start to end (PTMQ §1.5)."""

    iters: int
    warmup: float = 0.2
    start: float = 20.0
    end: float = 2.0

    def __call__(self, index: int) -> float:
        first = self.warmup * self.iters
        if index < first:
            return self.start
        return self.start + (self.end - self.start) * (index - first) / max(self.iters - first, 1e-9)

    def active(self, index: int) -> bool:
        return index >= self.warmup * self.iters


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip(sigmoid(V)(zeta - gamma) + gamma, 0, 1), shape of V."""
    return torch.clamp(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)


def start(fraction: Tensor) -> Tensor:
    """V0 with h(V0) = fraction, shape kept; the fraction is kept within [EDGE, 1 - EDGE]."""
    half = (ZETA - GAMMA) / 2  # written around phi = 1/2, which gives V = 0 exactly: ties round up
    away = fraction.double().clamp(EDGE, 1 - EDGE) - 0.5
    return torch.log((half + away) / (half - away)).to(fraction.dtype)


def regularizer(h: Tensor, beta: float) -> Tensor:
    """sum(1 - |2h - 1|^beta) over all elements: zero where every h is 0 or 1."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


def settled(h: Tensor, margin: float = 0.01) -> Tensor:
    """Number of elements of h within `margin` of 0 or 1."""
    return ((h < margin) | (h > 1 - margin)).sum()
