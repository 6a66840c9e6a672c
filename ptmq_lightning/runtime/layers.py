"""Layers of a multi-bit network, on the weights of `weights.py`, and the quantizers of what they read.

A convolution or linear layer asks its `weight` module for a tensor; that module is a `MultiBitWeight` here and a
trainable one while its block is reconstructed. Activation quantizers sit on the input of the layer that owns them; a
tensor that several layers read is quantized once, for all its readers (PTMQ §1.2: the shortcut sees the quantized
tensor).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq_lightning.runtime import grid
from ptmq_lightning.runtime.errors import ModelError
from ptmq_lightning.runtime.switchable import SwitchableActivation, SwitchableWeight
from ptmq_lightning.runtime.weights import Snapshot


class ActivationQuantizer(SwitchableActivation):
    """Per-tensor activation quantizer with a step s_a and an integer zero point per width; identity at bits None.

    steps, zero_points: float32 (K,), NaN before calibration. owner: the layer whose width it follows. pin: a fixed
    width. table: the 2^a levels are chosen ones of the uniform 8-bit grid of that step and zero point; tables then
    holds code -> level, uint8 (K, 256), else None. in_place: it may overwrite its input (runtime.inplace decides).
    """

    def __init__(self, widths: tuple[int, ...], owner: str, pin: int | None = None, table: bool = False) -> None:
        super().__init__(widths, owner, pin)
        self.register_buffer("steps", torch.full((len(widths),), torch.nan))
        self.register_buffer("zero_points", torch.zeros(len(widths)))
        empty = torch.zeros((len(widths), 2**grid.TABLE_BITS), dtype=torch.uint8) if table else None
        self.register_buffer("tables", empty)
        self.in_place = False
        self._lean: dict[int, grid.LeanActivation | grid.LookUp] = {}
        self._lean_of: Snapshot | None = None

    steps: Tensor
    zero_points: Tensor
    tables: Tensor | None

    @property
    def calibrated(self) -> bool:
        return not bool(self.steps.isnan().any())

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return x
        if self.tables is None and x.requires_grad and torch.is_grad_enabled():
            row = self.widths.index(self.bits)
            return grid.quantize_activation(x, self.steps[row], self.zero_points[row], self.bits)
        return self._lean_at(self.bits)(x, in_place=self.in_place)

    def fixed_step(self) -> Tensor | None:
        return None if self.bits is None else self.steps[self.widths.index(self.bits)]

    def _lean_at(self, bits: int) -> grid.LeanActivation | grid.LookUp:
        """The width's values, read from the tensors once."""
        sources = [tensor for tensor in self._buffers.values() if tensor is not None]
        if self._lean_of is None or not self._lean_of.holds(*sources):
            self._lean, self._lean_of = {}, Snapshot(*sources)
        if bits not in self._lean:
            row = self.widths.index(bits)
            step, zero_point = self.steps[row], self.zero_points[row]
            with torch.inference_mode(False), torch.no_grad():
                if self.tables is None:
                    self._lean[bits] = grid.LeanActivation.of(step, zero_point, bits)
                elif torch.equal(self.tables[row], torch.arange(2**grid.TABLE_BITS).to(self.tables)):  # every code
                    self._lean[bits] = grid.LeanActivation.of(step, zero_point, grid.TABLE_BITS)
                else:
                    self._lean[bits] = grid.LookUp.of(step, zero_point, self.tables[row])
        return self._lean[bits]

    def spec(self) -> dict[str, Any]:
        return {"widths": list(self.widths), "owner": self.owner, "pin": self.pin, "table": self.tables is not None}


class WeightLayer(nn.Module, ABC):
    """A layer on a multi-bit weight. bias (O,): the float network's, and of every width where biases is None;
    biases (K, O): of the weight's widths."""

    kind: ClassVar[str] = "linear"  # in the layer table
    channel: ClassVar[int] = -1  # the output's dimension of length O

    def __init__(self, weight: nn.Module, bias: Tensor | None, biases: Tensor | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", bias)
        self.register_buffer("biases", biases)

    bias: Tensor | None
    biases: Tensor | None

    @classmethod
    @abstractmethod
    def of(cls, layer: Any, weight: nn.Module) -> WeightLayer:
        """The twin of a layer of torch.nn on another weight."""

    @classmethod
    def weight_of(cls, layer: Any) -> Tensor:
        """The weight of a layer of torch.nn as its twin has it, output channels first: (O, ...)."""
        weight: Tensor = layer.weight.detach()
        return weight

    def forward(self, x: Tensor, quantizer: SwitchableActivation | None = None) -> Tensor:
        """quantizer: of x, where the bias is rounded as an integer runtime rounds it; None: it is taken as it is."""
        weight: Any = self.weight
        bias = self.bias
        if self.biases is not None and weight.bits is not None:
            bias = self.biases[weight.widths.index(weight.bits)]
        if bias is not None and quantizer is not None:
            bias = _whole(bias, weight, quantizer)
        return self.compute(x, weight(), bias)

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's function of an input, a weight (O, ...) and a bias (O,)."""


def _whole(bias: Tensor, weight: SwitchableWeight, quantizer: SwitchableActivation) -> Tensor:
    """A bias (O,) as a whole number of the layer's s_a * s_w; as it is in float, and while a step size is learned: the
    unit moves in each iteration then, and what rounding to it changes is far below a step of the output."""
    input_step, step = quantizer.fixed_step(), weight.fixed_step()
    if input_step is None or step is None:
        return bias
    return grid.whole_bias(bias, input_step, step)


class QuantConv2d(WeightLayer):
    """A convolution on a multi-bit weight; (B, C, H, W) -> (B, O, H', W')."""

    kind, channel = "conv", 1

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
        padding = self.padding if isinstance(self.padding, str) else list(self.padding)
        return {
            "stride": list(self.stride), "padding": padding, "dilation": list(self.dilation), "groups": self.groups
        }  # fmt: skip


class QuantConvTranspose2d(WeightLayer):
    """A transposed convolution on a multi-bit weight; (B, C, H, W) -> (B, O, H', W').

    It is a convolution over its input with stride - 1 zeros behind every value, and its weight is that convolution's:
    (O, C / groups, ...), where torch's is (C, O / groups, ...) and the other way round in space. So whatever works per
    output channel finds them where it looks for them.
    """

    kind, channel = "conv_transpose", 1

    def __init__(
        self,
        weight: nn.Module,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        output_padding: Any,
        biases: Tensor | None = None,
    ) -> None:
        super().__init__(weight, bias, biases)
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.output_padding = groups, tuple(output_padding)

    @classmethod
    def of(cls, conv: nn.ConvTranspose2d, weight: nn.Module) -> QuantConvTranspose2d:
        bias = None if conv.bias is None else conv.bias.detach().clone()
        return cls(weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups, conv.output_padding)

    @classmethod
    def weight_of(cls, conv: nn.ConvTranspose2d) -> Tensor:
        return swap_channels(conv.weight.detach(), conv.groups)

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = swap_channels(weight, self.groups)
        options = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return F.conv_transpose2d(x, weight, bias, *options)

    def spec(self) -> dict[str, Any]:
        return {
            "stride": list(self.stride), "padding": list(self.padding), "dilation": list(self.dilation),
            "groups": self.groups, "output_padding": list(self.output_padding),
        }  # fmt: skip


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution (C, O / groups, H, W) -> that of a convolution (O, C / groups, H, W), the
    other way round in space; and back."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return grouped.flatten(0, 1).flip(2, 3)


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
    """The product of two activations, (..., M, C) x (..., C, T) -> (..., M, T); each has a quantizer of its own."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.matmul(a, b)

    def spec(self) -> dict[str, Any]:
        return {}


TWINS: dict[type[nn.Module], type[WeightLayer]] = {  # class of torch.nn -> what insertion makes of its layers
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.Linear: QuantLinear,
}
QUANTIZABLE = tuple(TWINS)
WEIGHT_LAYERS: dict[str, type[Any]] = {twin.__name__: twin for twin in TWINS.values()}


def twin_of(layer: nn.Module) -> type[WeightLayer]:
    """The quantized class of a layer of torch.nn that is an instance of one of `QUANTIZABLE`."""
    return next(twin for kind, twin in TWINS.items() if isinstance(layer, kind))
