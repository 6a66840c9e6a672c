"""What the methods that train share: straight-through rounding, a weight with learned steps, a norm per width.

Sources: LSQ (Esser et al. 2020) for the weight; switchable BatchNorm (Slimmable networks, Yu et al. 2019) for the norm.
O output channels, K widths (pairs of weight and activation bits), C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError
from ptmq_lightning.runtime.spec import BitWidth
from ptmq_lightning.runtime.switchable import SwitchableWeight
from ptmq_lightning.runtime.weights import MultiBitWeight


class _Round(torch.autograd.Function):
    """round(x), half to even; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def round_through(x: Tensor) -> Tensor:
    """round(x) with the straight-through gradient, shape kept."""
    result: Tensor = _Round.apply(x)  # type: ignore[no-untyped-call]
    return result


class SharedWeight(SwitchableWeight):
    """One float weight W (O, ...) that every width quantizes in its own way: `at(bits)` of the subclasses."""

    def __init__(self, frozen: MultiBitWeight) -> None:
        super().__init__(frozen.widths)
        self.value = nn.Parameter(frozen.at(None).clone())

    @abstractmethod
    def at(self, bits: int | None) -> Tensor:
        """Weight (O, ...) of a width with gradients; None: not rounded."""

    @abstractmethod
    def committed(self) -> nn.Module:
        """What is stored, with the same `select` and `at`."""

    def forward(self) -> Tensor:
        return self.at(self.bits)


class LsqWeight(SharedWeight):
    """W^ = (clip(round(W / s_b + z/2), low, high) - z/2) s_b; log s_b (O,) is a parameter of its own for every width.

    Steps start from the frozen weight's. LSQ's factor on the step's gradient is left out: Adam does not see scales.
    """

    def __init__(self, frozen: MultiBitWeight) -> None:
        super().__init__(frozen)
        self._frozen = [frozen]  # in a list, so that it is no submodule
        self.log_step = nn.ParameterDict(
            {str(bits): nn.Parameter(step.log()) for bits, step in zip(frozen.widths, frozen.steps, strict=True)}
        )

    def at(self, bits: int | None) -> Tensor:
        if bits is None:
            return self.value
        step, zero = grid.per_channel(self.log_step[str(bits)].exp(), self.value), self._frozen[0].zero_point(bits)
        if zero is None:
            return round_through(self.value / step).clamp(*grid.limits(bits)) * step
        half = grid.half_levels(zero, self.value)
        return (round_through(self.value / step + half).clamp(*grid.limits(bits)) - half) * step

    @torch.no_grad()
    def committed(self) -> MultiBitWeight:
        """W on the latent grid (11 bits), so that a code may differ where W lies within 1/16 of an 8-bit step of a
        tie."""
        n, latent_step = grid.latent(self.value)
        steps = torch.stack([self.log_step[str(bits)].exp() for bits in self.widths])
        return MultiBitWeight(n, latent_step, self.widths, steps, zero_points=self._frozen[0].zero_points)


class SwitchNorm(nn.Module):
    """A BatchNorm with statistics (K, C) for every pair of widths; (B, C, H, W) -> same.

    layer: the layer it stands behind. shared: one scale and shift for all pairs, else a set for each. Without a choice
    it runs as the widest pair, the last one.
    """

    def __init__(self, norm: nn.BatchNorm2d, layer: str, pairs: Sequence[BitWidth], *, shared: bool) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        self.layer, self.pairs, self.shared = layer, tuple(pairs), shared
        self.eps, self.momentum = norm.eps, 0.1 if norm.momentum is None else norm.momentum
        mean, sets = norm.running_mean, 1 if shared else len(self.pairs)
        scale = torch.ones_like(mean) if norm.weight is None else norm.weight.detach()
        shift = torch.zeros_like(mean) if norm.bias is None else norm.bias.detach()
        self.scale = nn.Parameter(scale.repeat(sets, 1))
        self.shift = nn.Parameter(shift.repeat(sets, 1))
        self.register_buffer("mean", mean.repeat(len(self.pairs), 1))
        self.register_buffer("var", norm.running_var.repeat(len(self.pairs), 1))
        self.row = len(self.pairs) - 1

    mean: Tensor
    var: Tensor

    def choose(self, pair: BitWidth | None) -> None:
        self.row = row_of(pair, self.pairs, self.layer)

    def forward(self, x: Tensor) -> Tensor:
        own, row = 0 if self.shared else self.row, self.row
        scale, shift = self.scale[own], self.shift[own]
        return F.batch_norm(x, self.mean[row], self.var[row], scale, shift, self.training, self.momentum, self.eps)

    @torch.no_grad()
    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (K, C) of every pair in eval mode, formed in float64."""
        scale = self.scale.double() * (self.var.double() + self.eps).rsqrt()
        return scale.float(), (self.shift.double() - self.mean.double() * scale).float()


class FoldedWeight(SwitchableWeight):
    """A committed weight with its norm folded in, W^ * scale (K, O); choosing a pair sets the layer's bias (O,) too."""

    def __init__(self, source: Any, norm: SwitchNorm, layer: Any) -> None:
        super().__init__(source.widths)
        self.source: Any = source
        self.layer, self.pairs = norm.layer, norm.pairs
        self._layer = [layer]
        scales, shifts = norm.affine()
        bias = layer.bias
        self.register_buffer("scales", scales)
        self.register_buffer("biases", shifts if bias is None else shifts + scales * bias.detach())
        self.row = len(self.pairs) - 1
        self._active: tuple[Any, Tensor] | None = None

    scales: Tensor
    biases: Tensor

    def select(self, bits: int | None) -> None:
        super().select(bits)
        self.source.select(bits)

    def choose(self, pair: BitWidth | None) -> None:
        self.row = row_of(pair, self.pairs, self.layer)
        self._layer[0].bias = self.biases[self.row]

    def forget(self) -> None:
        """Its tensors have changed: nothing that was made of them is kept."""
        self._active = None

    def ready(self) -> Tensor | None:
        return None if self._active is None else self._active[1]

    def forward(self) -> Tensor:
        key = (self.source.bits, self.row, self.scales.device)
        if self._active is None or self._active[0] != key:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve later passes of any mode
                weight = self.source.at(self.source.bits)
                self._active = (key, weight * grid.per_channel(self.scales[self.row], weight))
        return self._active[1]


def row_of(pair: BitWidth | None, pairs: Sequence[BitWidth], layer: str) -> int:
    """Which set of a norm a pair has; None: the last, widest one. Raises ConfigError for a pair without one."""
    if pair is None:
        return len(pairs) - 1
    if pair not in pairs:
        have = ", ".join(map(str, pairs))
        raise ConfigError(f"the norm behind {layer} was not trained at {pair}; it was at {have}. Choose one of these.")
    return list(pairs).index(pair)
