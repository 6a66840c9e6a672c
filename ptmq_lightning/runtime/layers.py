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


class CommittedWeight(nn.Module):
    """One weight at every width: integer codes and steps s (K, O); O output channels, K widths."""

    def __init__(self, widths: tuple[int, ...], steps: Tensor) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.register_buffer("steps", steps)
        self.bits: int | None = None
        self._active: tuple[int | None, Tensor] | None = None

    steps: Tensor

    def code(self, bits: int) -> Tensor:
        """Integer codes int8 (O, ...) of a width."""
        raise NotImplementedError

    def spec(self) -> dict[str, Any]:
        """Plain values from which, with its tensors, the weight is built again."""
        raise NotImplementedError

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, where the weight has it."""
        assert bits is not None
        step = self.steps[index_of(bits, self.widths, "the weight")]
        code = self.code(bits)
        return code.float() * grid.per_channel(step, code)

    def select(self, bits: int | None) -> None:
        if bits is not None:
            index_of(bits, self.widths, "the weight")
        self.bits = bits

    def forward(self) -> Tensor:
        if self._active is None or self._active[0] != self.bits or self._active[1].device != self.steps.device:
            with torch.inference_mode(False), torch.no_grad():  # what is kept must serve later passes of any mode
                self._active = (self.bits, self.at(self.bits))
        return self._active[1]


class MultiBitWeight(CommittedWeight):
    """A weight on the latent grid. P rounding planes.

    latent n int16 (O, ...), latent_step s_L (O,), ratios rho (K, O), steps s (K, O), rounding uint8 (P, O, ...):
    kind "nearest" (P = 0), "planes" (R, one row per set of widths: plane_of), "offset" (tau in 31sts, P = 1).
    """

    def __init__(
        self, latent: Tensor, latent_step: Tensor, widths: tuple[int, ...], steps: Tensor, ratios: Tensor | None = None
    ) -> None:
        super().__init__(widths, steps)
        if ratios is None:
            ratios = torch.stack([grid.ratio(latent_step, step) for step in steps])
        self.kind = "nearest"
        self.plane_of: dict[int, int] = {}
        self.register_buffer("latent", latent)
        self.register_buffer("latent_step", latent_step)
        self.register_buffer("ratios", ratios)
        self.register_buffer("rounding", torch.zeros((0, *latent.shape), dtype=torch.uint8, device=latent.device))

    latent: Tensor
    latent_step: Tensor
    ratios: Tensor
    rounding: Tensor

    def set_rounding(self, kind: str, rounding: Tensor, plane_of: dict[int, int]) -> None:
        """Commit a rounding: uint8 (P, O, ...)."""
        self.kind, self.rounding, self.plane_of, self._active = kind, rounding, dict(plane_of), None

    def code(self, bits: int) -> Tensor:
        rho = self.ratios[index_of(bits, self.widths, "the weight")]
        if self.kind == "planes":
            return grid.code(self.latent, rho, bits, self.rounding[self.plane_of[bits]])
        if self.kind == "offset":
            return grid.code_offset(self.latent, rho, bits, self.rounding[0].double() / (2**grid.OFFSET_BITS - 1))
        return grid.code(self.latent, rho, bits)

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, n * s_L."""
        if bits is None:
            return self.latent.float() * grid.per_channel(self.latent_step, self.latent)
        return super().at(bits)

    def spec(self) -> dict[str, Any]:
        return {
            "packing": "latent",
            "shape": list(self.latent.shape),
            "widths": list(self.widths),
            "kind": self.kind,
            "planes": len(self.rounding),
            "plane_of": {str(b): p for b, p in self.plane_of.items()},
        }


class ActivationQuantizer(nn.Module):
    """Per-tensor activation quantiser with a step s_a and an integer zero point per width; identity at bits None.

    steps, zero_points: float32 (K,), NaN before calibration. owner: the layer whose width it follows. pin: a fixed
    width.
    """

    def __init__(self, widths: tuple[int, ...], owner: str, pin: int | None = None) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.owner, self.pin = owner, pin
        self.register_buffer("steps", torch.full((len(widths),), torch.nan))
        self.register_buffer("zero_points", torch.zeros(len(widths)))
        self.bits: int | None = None

    steps: Tensor
    zero_points: Tensor

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
        return grid.quantize_activation(x, self.steps[row], self.zero_points[row], self.bits)

    def spec(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "owner": self.owner, "pin": self.pin}


class QuantConv2d(nn.Module):
    """A convolution on a multi-bit weight; (B, C, H, W) -> (B, O, H', W')."""

    def __init__(
        self, weight: nn.Module, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.padding = padding if isinstance(padding, str) else tuple(padding)

    bias: Tensor | None

    @classmethod
    def of(cls, conv: nn.Conv2d, weight: nn.Module) -> QuantConv2d:
        if conv.padding_mode != "zeros":
            raise ModelError(
                f"found a convolution with padding_mode={conv.padding_mode!r}; expected 'zeros'. Pad outside of it."
            )
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    def spec(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups")
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in names}


class QuantLinear(nn.Module):
    """A linear layer on a multi-bit weight; (..., C) -> (..., O)."""

    def __init__(self, weight: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)

    bias: Tensor | None

    @classmethod
    def of(cls, linear: nn.Linear, weight: nn.Module) -> QuantLinear:
        return cls(weight, None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)

    def spec(self) -> dict[str, Any]:
        return {}


class QuantMatmul(nn.Module):
    """The product of two activations, (..., M, C) x (..., C, T) -> (..., M, T); each has a quantiser of its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def spec(self) -> dict[str, Any]:
        return {}
