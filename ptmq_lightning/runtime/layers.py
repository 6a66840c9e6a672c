"""Layers of a multi-bit network: integers that do not change and a width that does.

A convolution or linear layer asks its `weight` module for a tensor; that module is a `MultiBitWeight` here and a
trainable one while its block is reconstructed. Activation quantisers sit on the input of the layer that owns them; a
tensor that several layers read is quantised once, for all its readers (PTMQ §1.2: the shortcut sees the quantised
tensor).
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ConfigError, ModelError

ALL = slice(None)


def index_of(bits: int, widths: tuple[int, ...], what: str) -> int:
    """Row of a width; ConfigError where the model was not prepared for it."""
    if bits not in widths:
        have = ", ".join(map(str, widths))
        raise ConfigError(f"{what} has no width of {bits} bits; it was prepared for {have}. Choose one of these.")
    return widths.index(bits)


class Snapshot:
    """Tensors as they were: `holds` tells whether they are still the same objects and were not written to."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors
        self.counted = not any(tensor.is_inference() for tensor in tensors)  # those count no writes
        self.versions = [tensor._version for tensor in tensors] if self.counted else []

    def holds(self, *tensors: Tensor) -> bool:
        same = len(tensors) == len(self.tensors) and all(map(operator.is_, tensors, self.tensors))
        return same and (not self.counted or [tensor._version for tensor in tensors] == self.versions)


class CommittedWeight(nn.Module, ABC):
    """One weight at every width: integer codes and steps s (K, O); O output channels, K widths."""

    def __init__(self, widths: tuple[int, ...], steps: Tensor) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.register_buffer("steps", steps)
        self.bits: int | None = None
        self._active: tuple[int | None, Tensor] | None = None

    steps: Tensor

    @abstractmethod
    def code(self, bits: int, rows: slice = ALL) -> Tensor:
        """Integer codes int8 (O, ...) of a width; rows: of these output channels."""

    def levels(self, bits: int, rows: slice = ALL) -> Tensor:
        """The codes as whole numbers in float32."""
        return self.code(bits, rows).float()

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain values from which, with its tensors, the weight is built again; shape (O, ...) among them."""

    def at(self, bits: int | None) -> Tensor:
        """Weight float32 (O, ...) of a width; None: the float network's, where the weight has it.

        Made in pieces that stay in the processor's cache, so that it costs little more than writing it once.
        """
        assert bits is not None
        step = self.steps[index_of(bits, self.widths, "the weight")]
        weight = torch.empty(self.shape, device=step.device)
        rows = max(1, grid.PIECE // max(1, weight[0].numel()))
        for first in range(0, len(weight), rows):
            part = slice(first, first + rows)
            levels = self.levels(bits, part)
            torch.mul(levels, grid.per_channel(step[part], levels), out=weight[part])
        return weight

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """(O, ...)"""

    def select(self, bits: int | None) -> None:
        if bits is not None:
            index_of(bits, self.widths, "the weight")
        self.__dict__["bits"] = bits  # a switch sets hundreds of these, and nn.Module's own way is slow

    def use(self, weight: Tensor) -> None:
        """Run on this tensor, made by at(bits) of the selected width, until another width is selected."""
        self.__dict__["_active"] = (self.bits, weight)

    def forward(self) -> Tensor:
        if self._active is None or self._active[0] != self.bits or self._active[1].device != self.steps.device:
            self.use(self.made())
        assert self._active is not None
        return self._active[1]

    def made(self) -> Tensor:
        """The weight at the selected width, fit to serve later passes of any mode."""
        with torch.inference_mode(False), torch.no_grad():
            return self.at(self.bits)


class MultiBitWeight(CommittedWeight):
    """A weight on the latent grid. P rounding planes.

    latent n int16 (O, ...), latent_step s_L (O,), ratios rho (K, O), steps s (K, O), rounding uint8 (P, O, ...):
    kind "nearest" (P = 0), "planes" (R, one row per set of widths: plane_of), "offset" (tau in 31sts, P = 1),
    "latent" (int16, P = 1: learned integers n' that are rounded to nearest in the place of n).
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
        """Commit a rounding: uint8 (P, O, ...), of kind "latent" int16."""
        self.kind, self.rounding, self.plane_of, self._active = kind, rounding, dict(plane_of), None

    @property
    def shape(self) -> torch.Size:
        return self.latent.shape

    def code(self, bits: int, rows: slice = ALL) -> Tensor:
        return self.levels(bits, rows).to(torch.int8)

    def levels(self, bits: int, rows: slice = ALL) -> Tensor:
        rho, latent = self.ratios[index_of(bits, self.widths, "the weight")][rows], self.latent[rows]
        if self.kind == "planes":
            return grid.levels(latent, rho, bits, self.rounding[self.plane_of[bits], rows])
        if self.kind == "offset":
            tau = self.rounding[0, rows].double() / (2**grid.OFFSET_BITS - 1)
            return grid.code_offset(latent, rho, bits, tau).float()
        return grid.levels(self.integers[rows], rho, bits)

    @property
    def integers(self) -> Tensor:
        """What is rounded to nearest where nothing else is: n, or the learned n' of kind "latent", int16 (O, ...)."""
        return self.rounding[0] if self.kind == "latent" else self.latent

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
    width. table: the 2^a levels are chosen ones of the uniform 8-bit grid of that step and zero point; tables then
    holds code -> level, uint8 (K, 256), else None. in_place: it may overwrite its input (runtime.inplace decides).
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
        self.in_place = False
        self._lean: dict[int, grid.LeanActivation] = {}
        self._lean_of: Snapshot | None = None

    steps: Tensor
    zero_points: Tensor
    tables: Tensor | None

    @property
    def calibrated(self) -> bool:
        return not bool(self.steps.isnan().any())

    def select(self, bits: int | None) -> None:
        if bits is not None:
            bits = self.pin or bits
            if bits not in self.widths:
                index_of(bits, self.widths, f"the input of {self.owner}")
        self.__dict__["bits"] = bits  # as in CommittedWeight

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return x
        row = self.widths.index(self.bits)
        if self.tables is not None:
            return grid.look_up_activation(x, self.steps[row], self.zero_points[row], self.tables[row])
        if x.requires_grad and torch.is_grad_enabled():
            return grid.quantize_activation(x, self.steps[row], self.zero_points[row], self.bits)
        return self._lean_at(self.bits)(x, in_place=self.in_place)

    def _lean_at(self, bits: int) -> grid.LeanActivation:
        """The width's scalars, read from the tensors once."""
        steps, zero_points = self._buffers["steps"], self._buffers["zero_points"]
        assert steps is not None and zero_points is not None
        if self._lean_of is None or not self._lean_of.holds(steps, zero_points):
            self._lean, self._lean_of = {}, Snapshot(steps, zero_points)
        if bits not in self._lean:
            row = self.widths.index(bits)
            with torch.inference_mode(False), torch.no_grad():
                self._lean[bits] = grid.LeanActivation.of(steps[row], zero_points[row], bits)
        return self._lean[bits]

    def spec(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "owner": self.owner, "pin": self.pin, "table": self.tables is not None}


class WeightLayer(nn.Module, ABC):
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

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's function of an input, a weight (O, ...) and a bias (O,)."""


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
