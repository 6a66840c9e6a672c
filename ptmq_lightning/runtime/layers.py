"""Layers of a multi-bit network: integers that do not change and a width that does.

A convolution or linear layer asks its `weight` module for a tensor; that module is a `MultiBitWeight` here and a
trainable one while its block is reconstructed. Activation quantisers sit on the input of the layer that owns them; a
tensor that several layers read is quantised once, for all its readers (PTMQ §1.2: the shortcut sees the quantised
tensor).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError, ModelError


def index_of(bits: int, widths: tuple[int, ...], what: str) -> int:
    """Row of a width; ConfigError where the model was not prepared for it."""
    if bits not in widths:
        have = ", ".join(map(str, widths))
        raise ConfigError(f"{what} has no width of {bits} bits; it was prepared for {have}. Choose one of these.")
    return widths.index(bits)


class MultiBitWeight(nn.Module):
    """One weight at every width. O output channels, K widths, P rounding planes.

    latent n int16 (O, ...), latent_step s_L (O,), ratios rho (K, O), steps s (K, O), rounding uint8 (P, O, ...):
    kind "nearest" (P = 0), "planes" (R, one row per set of widths: plane_of), "offset" (tau in 31sts, P = 1),
    "latent" (int16, P = 1: learned integers n' that are rounded to nearest in the place of n).
    """

    def __init__(
        self, latent: Tensor, latent_step: Tensor, widths: tuple[int, ...], steps: Tensor, ratios: Tensor | None = None
    ) -> None:
        super().__init__()
        if ratios is None:
            ratios = torch.stack([grid.ratio(latent_step, step) for step in steps])
        self.widths = tuple(widths)
        self.kind = "nearest"
        self.plane_of: dict[int, int] = {}
        self.register_buffer("latent", latent)
        self.register_buffer("latent_step", latent_step)
        self.register_buffer("steps", steps)
        self.register_buffer("ratios", ratios)
        self.register_buffer("rounding", torch.zeros((0, *latent.shape), dtype=torch.uint8, device=latent.device))
        self.bits: int | None = None
        self._active: tuple[int | None, Tensor] | None = None

    latent: Tensor
    latent_step: Tensor
    steps: Tensor
    ratios: Tensor
    rounding: Tensor

    def set_rounding(self, kind: str, rounding: Tensor, plane_of: dict[int, int]) -> None:
        """Commit a rounding: uint8 (P, O, ...), of kind "latent" int16."""
        self.kind, self.rounding, self.plane_of, self._active = kind, rounding, dict(plane_of), None

    def code(self, bits: int) -> Tensor:
        """Integer codes int8 (O, ...) of a width."""
        rho = self.ratios[index_of(bits, self.widths, "the weight")]
        if self.kind == "planes":
            return grid.code(self.latent, rho, bits, self.rounding[self.plane_of[bits]])
        if self.kind == "offset":
            return grid.code_offset(self.latent, rho, bits, self.rounding[0].double() / (2**grid.OFFSET_BITS - 1))
        return grid.code(self.rounding[0] if self.kind == "latent" else self.latent, rho, bits)

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, n * s_L."""
        if bits is None:
            return self.latent.float() * grid.per_channel(self.latent_step, self.latent)
        step = self.steps[index_of(bits, self.widths, "the weight")]
        return self.code(bits).float() * grid.per_channel(step, self.latent)

    def select(self, bits: int | None) -> None:
        if bits is not None:
            index_of(bits, self.widths, "the weight")
        self.bits = bits

    def forward(self) -> Tensor:
        if self._active is None or self._active[0] != self.bits or self._active[1].device != self.latent.device:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve later passes of any mode
                self._active = (self.bits, self.at(self.bits))
        return self._active[1]

    def spec(self) -> dict[str, Any]:
        return {
            "widths": list(self.widths),
            "kind": self.kind,
            "plane_of": {str(b): p for b, p in self.plane_of.items()},
        }


class ActivationQuantizer(nn.Module):
    """Per-tensor activation quantiser with a step s_a and an integer zero point per width; identity at bits None.

    steps, zero_points: float32 (K,), NaN before calibration. owner: the layer whose width it follows. pin: a fixed
    width. table: the 2^a levels are chosen ones of the uniform 8-bit grid of that step and zero point; tables then
    holds code -> level, uint8 (K, 256), else None.
    """

    def __init__(self, widths: tuple[int, ...], owner: str, pin: int | None = None, table: bool = False) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.owner, self.pin = owner, pin
        self.register_buffer("steps", torch.full((len(widths),), torch.nan))
        self.register_buffer("zero_points", torch.zeros(len(widths)))
        empty = torch.zeros((len(widths), 2**grid.TABLE_BITS), dtype=torch.uint8) if table else None
        self.register_buffer("tables", empty)
        self.bits: int | None = None

    steps: Tensor
    zero_points: Tensor
    tables: Tensor | None

    @property
    def calibrated(self) -> bool:
        return not bool(self.steps.isnan().any())

    def select(self, bits: int | None) -> None:
        if bits is not None:
            bits = self.pin or bits
            index_of(bits, self.widths, f"the input of {self.owner}")
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return x
        row = self.widths.index(self.bits)
        if self.tables is not None:
            return grid.look_up_activation(x, self.steps[row], self.zero_points[row], self.tables[row])
        return grid.quantize_activation(x, self.steps[row], self.zero_points[row], self.bits)

    def spec(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "owner": self.owner, "pin": self.pin, "table": self.tables is not None}


class WeightLayer(nn.Module):
    """A layer on a multi-bit weight. bias (O,): the float network's, and of every width where biases is None;
    biases (K, O): of the weight's widths."""

    channel = -1  # the output's dimension of length O

    def __init__(self, weight: nn.Module, bias: Tensor | None, biases: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)
        self.register_buffer("biases", biases)

    bias: Tensor | None
    biases: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        weight: Any = self.weight
        if self.biases is None or weight.bits is None:
            return self.compute(x, weight(), self.bias)
        return self.compute(x, weight(), self.biases[weight.widths.index(weight.bits)])

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's function of an input, a weight (O, ...) and a bias (O,)."""
        raise NotImplementedError


class QuantConv2d(WeightLayer):
    """A convolution on a multi-bit weight; (B, C, H, W) -> (B, O, H', W')."""

    channel = 1

    def __init__(
        self,
        weight: nn.Module,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        biases: Tensor | None = None,
    ) -> None:
        super().__init__(weight, bias, biases)
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.padding = padding if isinstance(padding, str) else tuple(padding)

    @classmethod
    def of(cls, conv: nn.Conv2d, weight: nn.Module) -> QuantConv2d:
        if conv.padding_mode != "zeros":
            raise ModelError(
                f"found a convolution with padding_mode={conv.padding_mode!r}; expected 'zeros'. Pad outside of it."
            )
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def spec(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}


class QuantLinear(WeightLayer):
    """A linear layer on a multi-bit weight; (..., C) -> (..., O)."""

    @classmethod
    def of(cls, linear: nn.Linear, weight: nn.Module) -> QuantLinear:
        return cls(weight, None if linear.bias is None else linear.bias.detach().clone())

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def spec(self) -> dict[str, Any]:
        return {}


class QuantMatmul(nn.Module):
    """The product of two activations, (..., M, C) x (..., C, T) -> (..., M, T); each has a quantiser of its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def spec(self) -> dict[str, Any]:
        return {}
