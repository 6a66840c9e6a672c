"""Rounding as a variable: the rectified sigmoid h(V), its start, its regularizer and the schedule of beta.

Source: AdaRound's form as PTMQ §1.2 and §1.5 give it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ZETA, GAMMA = 1.1, -0.1
EDGE = 1e-4  # the fraction starts within [EDGE, 1 - EDGE], so that h(V) never starts where its gradient is cut off


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


def rectified_sigmoid_and_slope(v: Tensor) -> tuple[Tensor, Tensor]:
    """h(V) and dh/dV, shapes of V; where h is cut off its slope is 0."""
    sigmoid = torch.sigmoid(v)
    raw = sigmoid * (ZETA - GAMMA) + GAMMA
    h = raw.clamp(0, 1)
    return h, sigmoid * (1 - sigmoid) * (ZETA - GAMMA) * torch.eq(raw, h)


def start(fraction: Tensor) -> Tensor:
    """V0 with h(V0) = fraction, shape kept; the fraction is kept within [EDGE, 1 - EDGE]."""
    half = (ZETA - GAMMA) / 2  # written around phi = 1/2, which gives V = 0 exactly: ties round up
    away = fraction.double().clamp(EDGE, 1 - EDGE) - 0.5
    return torch.log((half + away) / (half - away)).to(fraction.dtype)


def settled(h: Tensor, margin: float = 0.01) -> Tensor:
    """Number of elements of h within `margin` of 0 or 1."""
    return ((h < margin) | (h > 1 - margin)).sum()
