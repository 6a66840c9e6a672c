"""Per-channel scales, shifts and rotations taken into a layer's weight and bias in float64; and the record of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class FoldReport:
    """folded: (what, where it went); kept: (what, why it stayed)."""

    folded: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)

    def __add__(self, other: FoldReport) -> FoldReport:
        return FoldReport(self.folded + other.folded, self.kept + other.kept)


def absorb_output(
    layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, scale: Tensor, shift: Tensor | None = None
) -> None:
    """The layer's output y becomes y * scale + shift; scale and shift (O,)."""
    weight, scale = layer.weight.detach().double(), scale.detach().double()
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().double() * scale
    if isinstance(layer, nn.ConvTranspose2d):  # (I, O/g, H, W): the groups' output channels lie side by side
        factor = scale.reshape(layer.groups, 1, -1, 1, 1)
        scaled = (weight.reshape(layer.groups, -1, *weight.shape[1:]) * factor).reshape(weight.shape)
    else:
        scaled = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    _store(layer, scaled, bias if shift is None else bias + shift.double())


def absorb_input(layer: nn.Conv2d | nn.Linear, scale: Tensor, shift: Tensor | None = None) -> None:
    """The layer reads x * scale + shift instead of x; scale and shift (I,). A convolution with a shift must not pad."""
    weight, groups = layer.weight.detach().double(), getattr(layer, "groups", 1)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (g, O/g, I/g, ...)
    ones = [1] * (weight.ndim - 2)
    factor = scale.detach().double().reshape(groups, 1, -1, *ones)
    bias = _bias(layer)
    if shift is not None:
        bias = bias + (grouped * shift.detach().double().reshape(groups, 1, -1, *ones)).flatten(2).sum(2).reshape(-1)
    _store(layer, (grouped * factor).reshape(weight.shape), bias)


def rotate_output(layer: nn.Conv2d | nn.Linear, heads: Tensor, rotation: Tensor) -> None:
    """The output channels of each head, a row vector y, become y R; heads (P, C) int64, rotation R (C, C) float64."""
    _store(layer, _rotated(layer.weight.detach(), 0, heads, rotation), _rotated(_bias(layer), 0, heads, rotation))


def rotate_input(layer: nn.Conv2d | nn.Linear, heads: Tensor, rotation: Tensor) -> None:
    """The layer reads x R where it read a row vector x of each head's channels; heads (P, C), rotation R (C, C)."""
    _store(layer, _rotated(layer.weight.detach(), 1, heads, rotation), _bias(layer))


def _bias(layer: nn.Conv2d | nn.Linear) -> Tensor:
    """(O,) float64; zeros where the layer has none."""
    return layer.weight.new_zeros(len(layer.weight)).double() if layer.bias is None else layer.bias.detach().double()


def _rotated(values: Tensor, axis: int, heads: Tensor, rotation: Tensor) -> Tensor:
    """Along an axis, the values of each head multiplied by R; float64."""
    made = values.double().movedim(axis, -1).clone()
    made[..., heads] = made[..., heads] @ rotation.to(made.device)
    return made.movedim(-1, axis)


def _store(layer: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))
    if layer.bias is not None or bool(bias.any()):
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
